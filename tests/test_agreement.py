"""Agreement on tiny models: patches and estimates by hand, backends against the reference, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, add, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.agreement import Agreement, _alike, correlations

from .broken import GradientOfOneRow, IgnoresEdits, NextPosition, OtherLayer

TASK = Agreement()


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any, Any]:
    """Model, work and reference, in float64."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    work = TASK.prepare(model, tokenizer, size="smoke")
    return model, work, TASK.reference(model, work)


# --- what is prepared ---


def test_pairs_differ_in_the_subject_alone() -> None:
    model, tokenizer = tiny_model("llama")
    work = TASK.prepare(model, tokenizer, size="default")
    assert [(pair.id, pair.attractor) for pair in work.pairs] == [
        (sentence, number) for sentence in ("man", "woman") for number in ("singular", "plural")
    ]
    for pair in work.pairs:
        differ = (pair.singular != pair.plural).nonzero()[:, 1].tolist()
        assert differ == [pair.first]
        assert tokenizer.decode(pair.singular[0][pair.first]) == "a"
        assert tokenizer.decode(pair.plural[0][pair.first]) == "e"
        assert [tokenizer.decode(t) for t in pair.verbs] == [" i", " a"]
        assert "".join(pair.tokens).endswith("s") == (pair.attractor == "plural")
    assert sorted(row for rows in _alike(work) for row in rows) == list(range(len(work.pairs)))
    assert repr(TASK.prepare(model, tokenizer, size="default")) == repr(work)


def test_what_cannot_be_prepared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        TASK.prepare(model, None, size="smoke")
    data = TASK.prepare.__globals__["read_agreement"]()
    unequal = type(data)(data.sentences[:1], data.verbs)  # key, keys
    monkeypatch.setattr("crosslens.tasks.agreement.read_agreement", lambda: unequal)
    with pytest.raises(InputError, match="no subject of 1 with equally many tokens"):
        TASK.prepare(model, tokenizer, size="smoke")


# --- by hand ---


def test_a_patch_by_a_plain_hook(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, reference = llama
    pair = work.pairs[0]
    states: dict[int, torch.Tensor] = {}

    def preference(patch: tuple[int, int] | None, ids: torch.Tensor, keep: bool = False) -> float:
        def hook(layer: int) -> Any:
            def on(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
                if keep:
                    states[layer] = output.clone()
                if patch and patch[0] == layer:
                    output = output.clone()
                    output[0, patch[1]] = states[layer][0, patch[1]]
                return output

            return on

        handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(model.model.layers)]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(logits[pair.verbs[0]] - logits[pair.verbs[1]])

    singular = preference(None, pair.singular, keep=True)
    plural = preference(None, pair.plural)
    assert [reference["singular"][0], reference["plural"][0]] == pytest.approx([singular, plural], abs=1e-9)
    for layer in range(3):
        for position in range(pair.length):
            by_hand = preference((layer, position), pair.plural) - plural
            assert reference["exact"][0, layer, position] == pytest.approx(by_hand, abs=1e-9)


def test_the_estimate_is_the_slope_of_small_patches(llama: tuple[nn.Module, Any, Any]) -> None:
    """By central differences; the norms of this model round to float32, whatever its dtype."""
    model, work, reference = llama
    pair, part = work.pairs[0], 1e-2
    with open_inspector("hooks", model) as lens:
        one, two = (lens.run(ids, capture=work.sites) for ids in (pair.singular, pair.plural))
        for layer, site in enumerate(work.sites):
            for position in (pair.first, pair.length - 1):
                step = part * (one[site] - two[site])[:, position : position + 1]
                value = [
                    pair.prefers(lens.run(pair.plural, edits=[add(site, s * step, positions=[position])]).logits).item()
                    for s in (-1, 1)
                ]
                slope = (value[1] - value[0]) / (2 * part)
                assert reference["estimate"][0, layer, position] == pytest.approx(slope, rel=0.01, abs=1e-3)


def test_what_must_be_zero_and_what_must_be_all(llama: tuple[nn.Module, Any, Any]) -> None:
    _, work, reference = llama
    for i, pair in enumerate(work.pairs):
        for name in ("exact", "estimate"):
            assert (reference[name][i, :, : pair.first] == 0).all()  # the same words so far
            assert np.abs(reference[name][i, -1, : pair.length - 1]).max() < 1e-12  # nothing reads them any more
            assert np.isnan(reference[name][i, :, pair.length :]).all()
        gap = reference["singular"][i] - reference["plural"][i]
        assert reference["exact"][i, -1, pair.length - 1] == pytest.approx(gap)


# --- backends that are wrong ---


@pytest.mark.parametrize("kind", [IgnoresEdits, NextPosition, OtherLayer, GradientOfOneRow])
def test_a_broken_backend_is_wrong(kind: Any) -> None:
    model, tokenizer = tiny_model("llama")
    work = TASK.prepare(model, tokenizer, size="smoke")
    pair = work.pairs[0]  # and another of the same length: one row's gradient could stand for the other's
    work.pairs[1] = dataclasses.replace(pair, singular=pair.plural, plural=pair.singular)
    reference = TASK.reference(model, work)
    with kind(model) as lens:
        assert not TASK.score(TASK.run(lens, work), reference, work, "float32").right


# --- for a reader ---


def test_the_step_and_the_bare_forward_are_of_the_same_inputs(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, reference = llama
    with open_inspector("hooks", model) as lens:
        run = TASK.step(lens, work)()
    bare = TASK.bare(model, work)()
    assert run.logits.shape == bare.logits.shape
    moved = (work.pairs[0].prefers(run.logits) - work.pairs[0].prefers(bare.logits)).item()
    assert moved == pytest.approx(reference["exact"][0, 1, work.pairs[0].length - 1])


def test_the_table_the_headline_and_what_is_known(llama: tuple[nn.Module, Any, Any]) -> None:
    _, work, reference = llama
    pair = work.pairs[0]
    exact = np.full(reference["exact"].shape, np.nan)
    for i, each in enumerate(work.pairs):
        exact[i, :, : each.length] = 0.0
        exact[i, :, each.first] = [6.0, 6.0, 1.0]
        exact[i, :, each.length - 1] = [0.5, 1.0, 6.0]
    gaps = {"singular": np.array([4.0, 3.0]), "plural": np.array([-2.0, -1.0]), "exact": exact}
    same = gaps | {"estimate": exact}
    blind = exact.copy()
    blind[:, 0, pair.first] = -1.0
    result = gaps | {"estimate": blind}
    assert correlations(same, work).tolist() == pytest.approx([1, 1])
    assert correlations(result, work, end_only=True).tolist() == pytest.approx([1, 1])
    assert (correlations(result, work) < 0.9).all()
    headline = TASK.headline(result, work)
    assert "the number moves to the end at layer 2 of 3" in headline
    assert "1.00 at the end" in headline
    assert "differ by 6.0 logits with a singular attractor, 4.0 with a plural one" in headline
    assert "stays at the subject" in TASK.headline(same | {"exact": np.where(exact == 6, 6, 0.0)[:, [0, 0, 0]]}, work)
    assert TASK.known(result, work).holds
    assert not TASK.known(same, work).holds  # the gradient sees it all
    assert not TASK.known(result | {"plural": np.array([2.0, 1.0])}, work).holds
    assert not TASK.known(result | {"estimate": -blind}, work).holds
    table = TASK.table(reference, work)
    assert list(table.columns) == ["sentence", "attractor", "layer", "position", "token", "exact", "estimate"]
    assert len(table) == 3 * sum(each.length for each in work.pairs)
    assert table[["exact", "estimate"]].notna().all(axis=None)
