"""The logit lens on tiny models: figures by hand, backends against the reference, and that errors show."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, Inspector, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.base import Result
from crosslens.tasks.lens import Lens, Work, appears, unembed

FAMILIES = ["llama", "gpt2", "gpt_neox"]


def outcome(model: nn.Module, work: Work, backend: str = "hooks") -> Result:
    with open_inspector(backend, model) as lens:
        return Lens().run(lens, work)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_agree_with_the_reference(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    work = Lens().prepare(model, tokenizer, size="smoke")
    reference = Lens().reference(model, work)
    score = Lens().score(outcome(model, work), reference, work, work.dtype)
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > Lens.least_effect
    # moved by one layer is not right, nor is a rank of its own
    shifted = {name: np.roll(figures, 1, axis=1) for name, figures in reference.items()}
    assert not Lens().score(shifted, reference, work, work.dtype).right
    off = {**reference, "rank": reference["rank"] + reference["ties"] + 1}
    assert not Lens().score(off, reference, work, work.dtype).right
    assert Lens().score({**reference, "rank": reference["rank"] + reference["ties"]}, reference, work, work.dtype).right


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "pyvene"])
def test_other_backends_agree(llama: tuple[nn.Module, Any], backend: str) -> None:
    model, tokenizer = llama
    work = Lens().prepare(model, tokenizer, size="smoke")
    score = Lens().score(outcome(model, work, backend), Lens().reference(model, work), work, work.dtype)
    assert score.right


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_says_what_the_model_says(family: str) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    work = Lens().prepare(model, tokenizer, size="smoke")
    result, reference = outcome(model, work), Lens().reference(model, work)
    for prompt in work.prompts.itertuples():
        ids = torch.tensor([tokenizer(prompt.text)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        token = tokenizer(f" {prompt.answer}")["input_ids"][0]
        assert prompt.token == token
        order = logits.argsort(descending=True).tolist()
        rest = torch.cat([logits[:token], logits[token + 1 :]])
        for found in (result, reference):
            own = {name: figures[prompt.Index, -1] for name, figures in found.items()}
            assert own["rank"] == order.index(token)
            assert own["margin"] == pytest.approx((logits[token] - rest.max()).item(), abs=1e-9)
            assert own["logprob"] == pytest.approx(logits.log_softmax(0)[token].item(), abs=1e-9)
            assert own["scale"] == pytest.approx(logits.abs().max().item(), abs=1e-9)


def test_a_middle_layer_by_hand() -> None:
    """RMSNorm and unembedding written out, on the stream that a plain hook sees."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    work = Lens().prepare(model, tokenizer, size="smoke")
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, out: seen.append(out))  # type: ignore[union-attr, operator, index]
    with torch.no_grad():
        model(torch.tensor([tokenizer(work.prompts["text"][0])["input_ids"]]))
    handle.remove()
    x = seen[0][0, -1]
    weights = model.state_dict()
    normed = x / (x.pow(2).mean() + model.config.rms_norm_eps).sqrt() * weights["model.norm.weight"]
    logits = weights["lm_head.weight"] @ normed
    token = int(work.prompts["token"][0])
    # the model's own norm works in float32
    expected = logits.log_softmax(0)[token].item()
    assert outcome(model, work)["logprob"][0, 1] == pytest.approx(expected, abs=1e-5)


def test_capped_logits_are_capped() -> None:
    model, tokenizer = tiny_model("gemma2")
    work = Lens().prepare(model, tokenizer, size="smoke")
    with open_inspector("hooks", model) as lens:
        inputs = work.batches[0].inputs
        run = lens.run(inputs, capture=work.sites[-1])
        logits = unembed(model, lens.architecture, run[work.sites[-1]])
        torch.testing.assert_close(logits, run.logits)
        assert logits.abs().max() < 4.0  # the cap of this model
    assert outcome(model, work)["scale"].max() < 4.0


def test_where_an_answer_appears_for_good() -> None:
    margin = np.array([[1.0, -1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, 0.0, 1.0]])
    rank = np.array([[900, 2, 4, 5], [0, 1, 2, 0], [5, 5, 5, 5], [4, 4, 4, 4]])
    work = dataclasses.replace(_work(), vocabulary=500)
    surfaced, settled = appears({"margin": margin, "rank": rank}, work)
    assert settled.tolist() == [2, 0, 4, 3]
    assert surfaced.tolist() == [4, 0, 4, 0]  # 5 of 500 tokens are 1 %: rank 4 is the last among them


def _work() -> Work:
    return Lens().prepare(*tiny_model("llama"), size="smoke")


def test_table_and_headline() -> None:
    work = _work()
    margin = np.array([[-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]] * 2)
    result = {"margin": margin, "logprob": -np.abs(margin), "rank": np.where(margin > 0, 0.0, 7.0)}
    table = Lens().table(result, work)
    assert len(table) == 4 * 3
    assert table.columns.tolist() == [
        "id", "category", "answer", "layer", "margin", "logprob", "rank", "surfaced", "settled",
    ]  # fmt: skip
    copied = table[(table["category"] == "copied") & (table["id"] == "france")]
    assert copied["rank"].tolist() == [7, 7, 0]
    assert copied["settled"].tolist() == [False, False, True]
    assert Lens().headline(result, work) == (
        "where the middle answer appears for good: "
        "recalled: among the first 1 % from layer 1 of 3, first choice from layer 1 of 3 (2 of 2 answers); "
        "copied: among the first 1 % from layer 2 of 3, first choice from layer 2 of 3 (2 of 2 answers)"
    )
    lost = {name: figures.copy() for name, figures in result.items()}
    lost["margin"][:, -1] = -1.0
    assert "first choice nowhere (0 of 2 answers)" in Lens().headline(lost, work)


def test_what_is_known_can_fail() -> None:
    work = _work()
    late = np.array([[-1.0, -1.0, 1.0]] * 4)
    assert Lens().known({"margin": late, "rank": np.where(late > 0, 0.0, 9.0)}, work).holds
    for wrong in (-late, np.abs(late), np.full((4, 3), -1.0)):
        assert not Lens().known({"margin": wrong, "rank": np.where(wrong > 0, 0.0, 9.0)}, work).holds


class Special:
    """A tokenizer that puts a token before and after every text."""

    pad_token_id, eos_token_id = 0, 2

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *self.inner(text)["input_ids"], 2]}


def test_prompts_end_before_what_a_tokenizer_adds(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    plain, wrapped = (Lens().prepare(model, t, size="default") for t in (tokenizer, Special(tokenizer)))
    assert wrapped.prompts["token"].tolist() == plain.prompts["token"].tolist()
    assert len(plain.prompts) == 24
    for a, b in zip(plain.batches, wrapped.batches, strict=True):
        assert a.rows == b.rows
        assert [[1, *ids.tolist()] for ids in a.unpadded()] == [ids.tolist() for ids in b.unpadded()]


def test_what_cannot_be_prepared_is_refused(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        Lens().prepare(model, None, size="smoke")
    with pytest.raises(InputError, match="makes no token of"):
        Lens().prepare(model, lambda text: {"input_ids": []}, size="smoke")
    with pytest.raises(InputError, match="predicts the next token"):
        Lens().prepare(*tiny_model("bert"), size="smoke")
    opt, _ = tiny_model("opt")
    opt.config._remove_final_layer_norm = True
    with pytest.raises(InputError, match="needs a model with a final norm, which this OPTForCausalLM lacks"):
        Lens().prepare(opt, tokenizer, size="smoke")


def test_a_step_is_the_bare_forward_and_its_captures(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    work = Lens().prepare(model, tokenizer, size="smoke")
    with open_inspector("hooks", model) as lens:
        run: Any = Lens().step(lens, work)()
        assert isinstance(lens, Inspector)
    assert list(run) == work.sites
    torch.testing.assert_close(run.logits, Lens().bare(model, work)().logits, rtol=0, atol=0)
