"""Encoder: the reference is BERT, backends agree with it, and what is known can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.encoder import Encoder, bert, likeness
from crosslens.tasks.kpis import NAMES


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, Any]:
    return tiny_model("bert")


def test_the_reference_is_the_models_own_forward() -> None:
    model, _ = tiny_model("bert", dtype=torch.float64, attn_implementation="eager")
    ids = torch.arange(12).reshape(2, 6) + 3
    sites = Encoder()._truth(model)(ids)
    with torch.no_grad():
        own = model.bert(ids, output_hidden_states=True, output_attentions=True)
    for layer in range(3):
        torch.testing.assert_close(
            sites[f"blocks.{layer}.resid_post"], own.hidden_states[layer + 1], rtol=0, atol=1e-12
        )
        torch.testing.assert_close(sites[f"blocks.{layer}.attn.pattern"], own.attentions[layer], rtol=0, atol=1e-12)
    assert (sites["blocks.1.attn.pattern"][..., 0, 1:] > 0).all()  # the first token sees those behind it


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["hooks", "nnsight", "transformer_lens"])
def test_backends_agree_with_the_reference(backend: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("bert", dtype=dtype)
    task = Encoder()
    work = task.prepare(model, tokenizer, size="smoke")
    reference = task.reference(model, work)
    with open_inspector(backend, model) as lens:
        result = task.run(lens, work)
    score = task.score(result, reference, work, str(dtype).removeprefix("torch."))
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > task.least_effect
    assert result["embedding"].shape == (24, 32)
    tokens = work.stories["tokens"].to_numpy()
    count = result["kpis"][:, work.sites.index("blocks.1.attn.pattern"), NAMES.index("count")]
    assert (count == 4 * tokens**2).all()  # both sides of the diagonal, and no padding
    assert "within a story" in task.headline(result, work)


@pytest.mark.parametrize("what", ["kpis", "embedding"])
def test_a_wrong_result_is_judged_wrong(tiny: tuple[nn.Module, Any], what: str) -> None:
    model, tokenizer = tiny
    task = Encoder()
    work = task.prepare(model, tokenizer, size="smoke")
    reference = task.reference(model, work)
    assert task.score(reference, reference, work, "float32").right
    for broken in (np.roll(reference[what], 1, axis=0), reference[what] * np.nan, reference[what][:, :-1]):
        if what == "kpis" and broken.shape != reference[what].shape:
            continue  # refused by shape there, where contrasts are taken
        assert not task.score({**reference, what: broken}, reference, work, "float32").right


def test_a_step_does_what_the_bare_forward_does(tiny: tuple[nn.Module, Any]) -> None:
    model, tokenizer = tiny
    task = Encoder()
    work = task.prepare(model, tokenizer, size="smoke")
    with open_inspector("hooks", model) as lens:
        run = task.step(lens, work)()
    bare = task.bare(model, work)()
    torch.testing.assert_close(run.logits, bare.logits, rtol=0, atol=0)
    assert not (run.logits[:, 0] == run.logits[:, 1]).all()


def test_known_holds_only_where_stories_are_apart(tiny: tuple[nn.Module, Any]) -> None:
    task = Encoder()
    work = task.prepare(*tiny, size="smoke")
    groups = work.stories["template"].astype("category").cat.codes.to_numpy()
    rng = np.random.default_rng(0)
    apart = np.eye(3)[groups] + 0.01 * rng.normal(size=(len(groups), 3))
    near, far = likeness(apart, work)
    assert near.min() > 0.99
    assert far.max() < 0.1
    assert task.known({"embedding": apart}, work).holds
    apart[0] = np.eye(3)[(groups[0] + 1) % 3]
    known = task.known({"embedding": apart}, work)
    assert not known.holds
    assert "for 100.0%" not in known.found


def test_only_encoders_are_taken() -> None:
    task = Encoder()
    with pytest.raises(InputError, match="BERT encoder, not LlamaForCausalLM"):
        task.prepare(*tiny_model("llama"), size="smoke")
    with pytest.raises(InputError, match="tokenizer"):
        task.prepare(tiny_model("bert")[0], None, size="smoke")
    model, tokenizer = tiny_model("bert")
    model.config.hidden_act = "relu"
    with pytest.raises(InputError, match="hidden_act='gelu', not 'relu'"):
        task.prepare(model, tokenizer, size="smoke")


def test_bert_is_torch_alone() -> None:
    """Without padding the order of a batch is nothing to it."""
    model, _ = tiny_model("bert", dtype=torch.float64)
    weights = {n.removeprefix("bert."): w for n, w in model.state_dict().items() if n.startswith("bert.")}
    ids = torch.arange(18).reshape(3, 6)
    one, other = (bert(weights, model.config, each) for each in (ids, ids.flip(0)))
    for site, tensor in one.items():
        torch.testing.assert_close(tensor, other[site].flip(0), rtol=0, atol=1e-13)
