"""Ablated neurons on tiny models: scores and ablations by hand, backends against the reference, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.neurons import Neurons, _found, scores

from .broken import IgnoresEdits, NextUnit, NoMask, OtherLayer

TASK = Neurons()


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any, Any]:
    """Model, work and reference, in float64."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    work = TASK.prepare(model, tokenizer, size="smoke")
    return model, work, TASK.reference(model, work)


# --- what is prepared ---


def test_half_of_the_sentences_are_held_out() -> None:
    model, tokenizer = tiny_model("llama")
    work = TASK.prepare(model, tokenizer, size="default")
    assert len(work.texts) == 28
    assert work.texts["held"].sum() == 14
    assert not set(work.texts["story"][work.texts["held"]]) & set(work.texts["story"][~work.texts["held"]])
    assert [tokenizer.decode(t) for t in work.pronouns] == [" S", " H"]
    for held, batch in ((False, work.finding), (True, work.held)):
        half = work.texts[work.texts["held"] == held].reset_index(drop=True)
        read = dict(zip(batch.rows, batch.unpadded(), strict=True))
        for story, (woman, man) in zip(half["story"].unique(), work.pairs(held), strict=True):
            assert half["story"][woman] == half["story"][man] == story
            one, two = tokenizer.decode(read[woman]), tokenizer.decode(read[man])
            assert one.replace(" woman", " man").replace(" her ", " his ") == two
            assert one.endswith(".")
            assert one.count(".") == 1
    assert repr(TASK.prepare(model, tokenizer, size="default")) == repr(work)


def test_what_cannot_be_prepared_is_refused() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        TASK.prepare(model, None, size="smoke")
    with pytest.raises(InputError, match="known family, not Linear"):
        TASK.prepare(nn.Linear(2, 2), tokenizer, size="smoke")


# --- by hand ---


def test_scores_of_a_plain_forward(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, reference = llama
    seen: list[torch.Tensor] = []
    layers: Any = model.model.layers
    handles = [b.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0])) for b in layers]
    means = np.empty((4, 3, 80))
    with torch.no_grad():
        for row, ids in zip(work.finding.rows, work.finding.unpadded(), strict=True):
            seen.clear()
            model(ids[None])
            means[row] = torch.stack(seen).mean(1).numpy()
    for handle in handles:
        handle.remove()
    apart = means[[0, 2]] - means[[1, 3]]  # story by story, woman and man
    spread = np.abs(apart[0] - apart[1]) / np.sqrt(2)
    by_hand = apart.mean(0) / (spread + np.median(spread, axis=1)[:, None])
    np.testing.assert_allclose(reference["score"], by_hand, atol=1e-5)


def test_a_zeroed_neuron_is_one_without_output_weights(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, reference = llama
    found = _found(reference["score"], work)
    assert work.least <= found.sum() <= work.most
    without = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in np.argwhere(found):
            without.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
        for row, ids in zip(work.held.rows, work.held.unpadded(), strict=True):
            plain, ablated = (net(ids[None]).logits[0] for net in (model, without))
            p, q = (logits[-1].softmax(-1).numpy() for logits in (plain, ablated))
            assert reference["kl"][1, row] == pytest.approx((p * np.log(p / q)).sum(), abs=1e-6)
            for c, logits in enumerate((plain, ablated)):
                loss = nn.functional.cross_entropy(logits[:-1], ids[1:])
                assert reference["loss"][c, row] == pytest.approx(loss.item(), abs=1e-6)
                she, he = logits[-1, list(work.pronouns)].tolist()
                assert reference["prefers"][c, row] == pytest.approx(she - he, abs=1e-6)
    assert (reference["kl"][0] == 0).all()
    assert (reference["kl"][1:] > 0).all()


@given(
    means=arrays.arrays(np.float64, (6, 2, 5), elements=st.floats(-5, 5, width=32)),
    factor=st.floats(0.1, 10), shift=st.floats(-3, 3),
)  # fmt: skip
def test_scores_know_neither_unit_nor_origin(means: Any, factor: float, shift: float) -> None:
    pairs = np.array([[0, 1], [2, 3], [4, 5]])
    apart = means[::2] - means[1::2]
    if np.median(apart.std(axis=0, ddof=1), axis=1).min() < 1e-3:
        return  # nothing to divide by
    score, spread = scores(means, pairs)
    moved, _ = scores(factor * means + shift, pairs)
    np.testing.assert_allclose(moved, score, atol=1e-6)
    swapped, same = scores(means, pairs[:, ::-1])
    np.testing.assert_allclose(swapped, -score)
    assert (same == spread).all()


# --- backends that are wrong ---


@pytest.mark.parametrize("kind", [IgnoresEdits, NextUnit, OtherLayer, NoMask])
def test_a_broken_backend_is_wrong(kind: Any) -> None:
    model, tokenizer = tiny_model("llama")
    work = TASK.prepare(model, tokenizer, size="smoke")
    reference = TASK.reference(model, work)
    with kind(model) as lens:
        score = TASK.score(TASK.run(lens, work), reference, work, "float32")
    assert score.right == (kind is NoMask)  # padding on the right is never attended to, by a causal model


# --- for a reader ---


def test_the_step_and_the_bare_forward_are_of_the_same_inputs(llama: tuple[nn.Module, Any, Any]) -> None:
    model, work, _ = llama
    with open_inspector("hooks", model) as lens:
        run = TASK.step(lens, work)()
    bare = TASK.bare(model, work)()
    assert run.logits.shape == bare.logits.shape
    assert not torch.allclose(run.logits, bare.logits, atol=1e-3)


def test_the_table_the_headline_and_what_is_known(llama: tuple[nn.Module, Any, Any]) -> None:
    _, work, reference = llama
    assert work.conditions == [
        ("nothing", "", 0), ("found", "zero", 0), ("found", "mean", 0), ("random", "zero", 0), ("random", "mean", 0),
    ]  # fmt: skip
    score = np.zeros((3, 80))
    score[0, 5], score[2, :4] = -9.0, 8.0
    gaps = np.array([8.0, 4.0, 5.0, 7.5, 8.0])
    prefers = np.zeros((5, 4))
    women, men = work.pairs(held=True).T
    prefers[:, women], prefers[:, men] = gaps[:, None] / 2, -gaps[:, None] / 2
    kl = np.repeat([[0.0], [0.5], [0.4], [0.1], [0.05]], 4, axis=1)
    result = {"score": score, "prefers": prefers, "kl": kl, "loss": kl}
    assert TASK.headline(result, work) == (
        "of 8.00 logits between She and He, zeroing the 5 neurons of 240 that differ most leaves 4.00, setting them to "
        "their mean 5.00, zeroing random ones 7.50; the prediction moves by 0.500, 0.400 and 0.100 nats; they lie in "
        "layers 0 to 2"
    )
    assert TASK.known(result, work).holds
    assert not TASK.known(result | {"prefers": np.where(prefers[:1] == 0, 0, prefers[[0, 0, 0, 0, 0]])}, work).holds
    assert not TASK.known(result | {"kl": np.full((5, 4), 0.1)}, work).holds
    assert not TASK.known(result | {"prefers": -prefers}, work).holds
    table = TASK.table(reference, work)
    assert list(table.columns) == ["ablated", "how", "draw", "story", "category", "loss", "kl", "prefers"]
    assert len(table) == 5 * 4
    nothing = table[table["ablated"] == "nothing"]
    assert nothing["category"].tolist() == ["woman", "man"] * 2
    assert nothing["prefers"].tolist() == reference["prefers"][0].tolist()
