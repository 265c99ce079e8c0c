"""Key figures while generating, on tiny models: by hand, backends against the reference, and that errors show."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector
from crosslens.tasks.base import Result
from crosslens.tasks.generation import FIGURES, Generation, Work

from .broken import OtherLayer

FAMILIES = ["llama", "gpt2", "gpt_neox"]


def outcome(model: nn.Module, work: Work, backend: str = "hooks") -> Result:
    with open_inspector(backend, model) as lens:
        return Generation().run(lens, work)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def work(llama: tuple[nn.Module, Any]) -> Work:
    return Generation().prepare(*llama, size="smoke")


@pytest.fixture(scope="module")
def reference(llama: tuple[nn.Module, Any], work: Work) -> Result:
    return Generation().reference(llama[0], work)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_agree_with_the_reference(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    work = Generation().prepare(model, tokenizer, size="smoke")
    reference = Generation().reference(model, work)
    score = Generation().score(outcome(model, work), reference, work, work.dtype)
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > Generation.least_effect


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_agree(llama: tuple[nn.Module, Any], work: Work, reference: Result, backend: str) -> None:
    assert Generation().score(outcome(llama[0], work, backend), reference, work, "float32").right


class ReadsLate(HooksInspector):
    """Gives what was seen one step later."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        found = super().generate(*args, **kwargs)
        for site in found:
            found[site].copy_(found[site].roll(-1, dims=1))
        return found


@pytest.mark.parametrize("broken", [OtherLayer, ReadsLate])
def test_broken_backends_are_caught(
    llama: tuple[nn.Module, Any], work: Work, reference: Result, broken: type[HooksInspector]
) -> None:
    with broken(llama[0]) as lens:
        result = Generation().run(lens, work)
    assert not Generation().score(result, reference, work, "float32").right


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_by_hand(family: str) -> None:
    """One plain forward over the whole text, and SciPy's own words for the figures."""
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    work = Generation().prepare(model, tokenizer, size="smoke")
    block = {"llama": "model.layers.2", "gpt2": "transformer.h.2", "gpt_neox": "gpt_neox.layers.2"}[family]
    seen: list[torch.Tensor] = []
    row = 4
    prompt = tokenizer(work.openings["text"][row])["input_ids"]
    for found in (outcome(model, work), Generation().reference(model, work)):
        new = found["tokens"][row].astype(int).tolist()
        seen.clear()
        handle = model.get_submodule(block).register_forward_hook(lambda module, args, out: seen.append(out))
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *new]])).logits[0]
        handle.remove()
        chosen_at = [len(prompt) - 1 + step for step in range(work.new)]
        assert logits[chosen_at].argmax(-1).tolist() == new
        stream = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0].numpy()
        site = work.sites.index("blocks.2.resid_post")
        assert found["first"][row, site] == pytest.approx(np.abs(stream[0]).max())
        for step, position in enumerate(chosen_at):
            x = stream[position]
            expected = [np.mean(x), np.std(x), np.linalg.norm(x, np.inf), stats.kurtosis(x)]
            np.testing.assert_allclose(found["kpis"][row, step, site], expected, rtol=1e-6)
            best, second = np.sort(logits[position].numpy())[:-3:-1]
            assert found["margin"][row, step] == pytest.approx(best - second, abs=1e-6)
            assert found["entropy"][row, step] == pytest.approx(
                stats.entropy(torch.softmax(logits[position], 0)), abs=1e-6
            )


def test_openings_of_a_batch_are_equally_long(work: Work) -> None:
    rows = [row for batch in work.batches for row in batch.rows]
    assert sorted(rows) == list(range(9))
    for batch in work.batches:
        assert batch.inputs["attention_mask"].all()
    assert work.sites[:3] == ["blocks.0.attn.out", "blocks.0.mlp.out", "blocks.0.resid_post"]


def test_a_text_may_part_at_a_tie_and_nowhere_else(work: Work, reference: Result) -> None:
    parted, tied = copy.deepcopy(dict(reference)), copy.deepcopy(dict(reference))
    parted["tokens"][0, 1:] += 1
    parted["kpis"][0, 2:] += 5.0
    assert not Generation().score(parted, reference, work, "float32").right
    tied["margin"][0, 1] = parted["margin"][0, 1] = 1e-9
    assert Generation().score(parted, tied, work, "float32").right
    parted["kpis"][0, 1, -1, 0] += 0.1  # the token was chosen at a position that both read
    assert not Generation().score(parted, tied, work, "float32").right


@pytest.mark.parametrize("name", ["kpis", "margin", "entropy", "scale", "first"])
def test_a_wrong_figure_anywhere_is_not_right(work: Work, reference: Result, name: str) -> None:
    for wrong in (0.01, np.nan, np.inf):
        broken = copy.deepcopy(dict(reference))
        broken[name].reshape(-1)[-1] += wrong
        assert not Generation().score(broken, reference, work, "float32").right


def test_the_table_ranks_where_registers_differ(work: Work) -> None:
    rng = np.random.default_rng(0)
    shape = len(work.openings), work.new, len(work.sites), len(FIGURES)
    result = {"kpis": rng.normal(1.0, 0.1, shape), "entropy": np.ones(shape[:2])}
    site = work.sites.index("blocks.1.mlp.out")
    result["kpis"][(work.openings["category"] == "story").to_numpy(), 1:, site, FIGURES.index("sd")] += 10
    table = Generation().table(result, work)
    assert len(table) == 3 * (1 + work.new) * len(work.sites) * len(FIGURES)
    mean = table[(table["token"] == -1) & (table["register"] == "story")].iloc[0]
    assert (mean["site"], mean["kpi"]) == ("blocks.1.mlp.out", "sd")
    assert mean["difference"] == pytest.approx(10, abs=0.3)
    assert mean["mean"] == pytest.approx(11, abs=0.3)
    assert mean["n"] == 3
    assert table["g"].dropna().abs().is_monotonic_decreasing
    headline = Generation().headline(result, work)
    assert headline.startswith("registers differ most, where the model reads its own text: ")
    assert "story at blocks.1.mlp.out sd (g = +" in headline
    assert headline.endswith("nats a token: story 1.00, definition 1.00, dialogue 1.00")


def test_rounding_is_no_difference(work: Work) -> None:
    shape = len(work.openings), work.new, len(work.sites), len(FIGURES)
    kpis = 1 + 1e-7 * np.random.default_rng(0).normal(size=shape)
    result = {"kpis": kpis, "entropy": np.zeros(shape[:2])}
    assert Generation().table(result, work)["g"].isna().all()
    assert Generation().headline(result, work).startswith("no key figure differs between registers by more than")


def test_what_is_known_can_fail(work: Work, reference: Result) -> None:
    massive = copy.deepcopy(dict(reference))
    massive["first"][:] = 11 * reference["kpis"].max()
    assert Generation().known(massive, work).holds
    massive["kpis"][3, 2] = massive["first"].max()  # one new token that has it as well
    assert not Generation().known(massive, work).holds


def test_what_cannot_be_prepared_is_refused(llama: tuple[nn.Module, Any]) -> None:
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        Generation().prepare(llama[0], None, size="smoke")
    with pytest.raises(InputError, match="predicts the next token"):
        Generation().prepare(*tiny_model("bert"), size="smoke")


def test_a_step_is_the_bare_forward_and_its_captures(llama: tuple[nn.Module, Any], work: Work) -> None:
    with open_inspector("hooks", llama[0]) as lens:
        run: Any = Generation().step(lens, work)()
    assert list(run) == work.sites
    torch.testing.assert_close(run.logits, Generation().bare(llama[0], work)().logits, rtol=0, atol=0)
