"""Induction on tiny models: scores and losses by hand, backends against the reference, and what is refused."""

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
from crosslens.tasks.ablation import leading, losses, others
from crosslens.tasks.induction import Induction, _found, _halves

TASK = Induction()


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any, Any, Any]:
    """Model, tokenizer, work and reference, in float64, with the attention whose patterns a plain model returns."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64, attn_implementation="eager")
    work = TASK.prepare(model, tokenizer, size="smoke")
    return model, tokenizer, work, TASK.reference(model, work)


# --- what is prepared ---


@pytest.mark.parametrize("bos", [True, False])
def test_sequences_are_said_twice_or_end_alike(bos: bool) -> None:
    model, tokenizer = tiny_model("llama")
    if not bos:
        tokenizer.bos_token = None
    work = TASK.prepare(model, tokenizer, size="default")
    assert work.ids.shape == (8, 50 + bos)
    assert work.second == 25 + bos
    for again, fresh in zip(*work.ids.split(4), strict=True):
        tokens = again[work.second :].tolist()
        assert again.tolist() == [1] * bos + tokens * 2
        assert fresh[work.second :].tolist() == tokens
        assert len(set(fresh[bos:].tolist())) == 50
        assert not set(fresh[bos:].tolist()) & set(tokenizer.all_special_ids)
    assert repr(TASK.prepare(model, tokenizer, size="default")) == repr(work)


def test_what_cannot_be_prepared_is_refused() -> None:
    model, tokenizer = tiny_model("llama")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        TASK.prepare(model, None, size="smoke")
    with pytest.raises(InputError, match="known family, not Linear"):
        TASK.prepare(nn.Linear(2, 2), tokenizer, size="smoke")
    tokenizer.add_special_tokens({"additional_special_tokens": tokenizer.convert_ids_to_tokens(list(range(3, 300)))})
    with pytest.raises(InputError, match="needs 24 different tokens; the tokenizer has 11 that are not special"):
        TASK.prepare(model, tokenizer, size="smoke")


# --- by hand ---


def test_scores_are_attention_to_what_came_next(llama: tuple[nn.Module, Any, Any, Any]) -> None:
    model, _, work, reference = llama
    with torch.no_grad():
        patterns = torch.stack(model(work.ids, output_attentions=True).attentions).numpy()
    for kind, layer, head in np.ndindex(2, 3, 4):
        rows = [kind * 2, kind * 2 + 1]
        by_hand = [patterns[layer, row, head, 13 + i, 1 + i + 1] for row in rows for i in range(12)]  # after <bos>, 12
        assert reference["score"][kind, layer, head] == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_an_ablated_head_is_one_without_output_weights(llama: tuple[nn.Module, Any, Any, Any]) -> None:
    model, _, work, reference = llama
    found = _found(reference["score"], work)
    assert 1 <= found.sum() <= 2
    without = copy.deepcopy(model)
    for layer, head in np.argwhere(found):
        with torch.no_grad():
            without.model.layers[layer].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    with torch.no_grad():
        for condition, net in enumerate((model, without)):
            logits = net(work.ids).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), work.ids[:, 1:], reduction="none")
            for kind in range(2):
                by_hand = loss[kind * 2 : kind * 2 + 2].mean(0).numpy()
                np.testing.assert_allclose(reference["loss"][condition, kind], by_hand, atol=1e-6)


def test_halves_leave_out_what_nobody_can_know(llama: tuple[nn.Module, Any, Any, Any]) -> None:
    work = llama[2]
    loss = np.zeros((3, 2, work.ids.shape[1] - 1))
    loss[..., work.second - 1] = 100.0  # the second half's first token
    loss[1, 0, work.second :] = 2.0
    loss[2, 1, : work.second - 1] = 3.0
    halves = {key: value.tolist() for key, value in _halves({"loss": loss}, work).items()}
    assert halves == {
        ("repeated", "first"): [0, 0, 0], ("repeated", "second"): [0, 2, 0],
        ("random", "first"): [0, 0, 3], ("random", "second"): [0, 0, 0],
    }  # fmt: skip


@given(
    scores=arrays.arrays(np.float64, (4, 5), elements=st.floats(0, 1), unique=True),
    least=st.integers(1, 4), extra=st.integers(0, 5), draw=st.integers(0, 3),
)  # fmt: skip
def test_what_is_found_and_what_it_is_compared_with(scores: Any, least: int, extra: int, draw: int) -> None:
    chosen = leading(scores, least, least + extra)
    count = int(chosen.sum())
    assert least <= count <= least + extra
    assert scores[chosen].min() > scores[~chosen].max()
    falling = np.sort(scores.ravel())[::-1]
    gaps = falling[:-1] - falling[1:]
    assert gaps[count - 1] == gaps[least - 1 : least + extra].max()
    other = others(chosen, draw)
    assert other.sum() == count
    assert not (other & chosen).any()
    assert (other == others(chosen, draw)).all()
    if (chosen.sum(axis=1) <= 2).all():
        assert (other.sum(axis=1) == chosen.sum(axis=1)).all()


def test_losses_are_those_of_the_next_token() -> None:
    logits, ids = torch.randn(2, 5, 7, dtype=torch.float64), torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
    for row, found in enumerate(losses(logits, ids)):
        p = np.exp(logits[row].numpy())
        by_hand = [-np.log(p[t, ids[row, t + 1]] / p[t].sum()) for t in range(4)]
        np.testing.assert_allclose(found, by_hand, atol=1e-12)


# --- for a reader ---


def test_the_step_and_the_bare_forward_are_of_the_same_inputs() -> None:
    model, tokenizer = tiny_model("llama")
    work = TASK.prepare(model, tokenizer, size="smoke")
    with open_inspector("hooks", model) as lens:
        run = TASK.step(lens, work)()
    bare = TASK.bare(model, work)()
    assert run.logits.shape == bare.logits.shape
    assert not torch.allclose(run.logits, bare.logits, atol=0.01)  # heads are gone


def test_the_table_and_the_headline(llama: tuple[nn.Module, Any, Any, Any]) -> None:
    _, _, work, reference = llama
    score = np.full((2, 3, 4), 0.1)
    score[0, 1, 2], score[0, 2, 3] = 0.9, 0.8
    loss = np.full((3, 2, 24), 5.0)
    loss[1, 0, 13:] = 7.0
    loss[2, 0, 13:] = 5.5
    result = {"score": score, "loss": loss, "scale": np.array(10.0)}
    table = TASK.table(result, work)
    heads = table[table["measure"] == "score"]
    assert len(heads) == 24
    assert heads[heads["found"]].query("sequences == 'repeated'")["value"].tolist() == [0.9, 0.8]
    rows = table[table["measure"] == "loss"].set_index(["sequences", "ablated", "half"])["value"]
    assert len(rows) == 2 * 3 * 2
    assert rows["repeated", "induction heads", "second"] == 7.0
    assert TASK.headline(result, work) == (
        "2 of 12 heads continue what was said, above all head 2 of layer 1 (0.90); without them the second half costs "
        "+2.00 nats a token, the first +0.00; without as many others +0.50"
    )
    assert TASK.known(result, work).holds
    assert not TASK.known(result | {"loss": np.full((3, 2, 24), 5.0)}, work).holds
    assert not TASK.known(result | {"score": score / 2}, work).holds
    assert not TASK.known(reference, work).holds  # of random weights nothing is known
