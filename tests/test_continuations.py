"""When two greedy texts may part, and that a draft never changes what is greedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosslens.adapters import InputError
from crosslens.adapters.conformance.models import tiny_tokenizer
from crosslens.tasks.continuations import asked, followed, margins, verified


def test_an_answer_begins_where_the_prompt_ends() -> None:
    tokenizer = tiny_tokenizer()
    prompt, token = asked("lens", tokenizer, "We saw", "Mary")
    assert tokenizer.decode(prompt) == "We saw"
    assert tokenizer.decode([token]) == " M"
    with pytest.raises(InputError, match="task 'lens': the tokenizer makes no token of 'We saw' or of 'Mary'"):
        asked("lens", lambda text: {"input_ids": [1, 2]}, "We saw", "Mary")


def test_margins_are_between_the_two_largest() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.5], [2.0, 2.0, -9.0]])
    assert margins(logits).tolist() == [1.5, 0.0]


def test_texts_may_part_at_a_tie_only() -> None:
    right = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    margin = np.array([[9.0, 0.1, 9.0], [9.0, 9.0, 0.1]])
    tolerance = np.full((2, 3), 0.2)
    same, fair = followed(right, right, margin, tolerance)
    assert same.all()
    assert fair
    tied = right.copy()
    tied[0, 1:] = 7  # parts where the margin is 0.1; what follows has another text before it
    before, fair = followed(tied, right, margin, tolerance)
    assert before.tolist() == [[True, True, False], [True, True, True]]
    assert fair
    wrong = right.copy()
    wrong[1, 1] = 7  # parts where the margin is 9, and comes back
    before, fair = followed(wrong, right, margin, tolerance)
    assert before.tolist() == [[True, True, True], [True, True, False]]
    assert not fair


def causal_logits(tokens: Tensor, vocabulary: int = 5) -> Tensor:
    """(batch, pos) -> (batch, pos, vocabulary): a pseudo-random function of all tokens up to each position."""
    state = torch.zeros(tokens.shape[0], dtype=torch.int64)
    out = []
    for column in tokens.T:
        state = (state * 31 + column + 7) % 1009
        out.append(torch.stack([(state * (v + 3) * 17 + v) % 101 for v in range(vocabulary)], dim=-1))
    return torch.stack(out, dim=1).double()


@settings(max_examples=60)
@given(st.data(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))
def test_whatever_the_draft_the_continuation_is_greedy(data: st.DataObject, batch: int, width: int, new: int) -> None:
    def tokens(columns: int) -> Tensor:
        row = st.lists(st.integers(0, 4), min_size=columns, max_size=columns)
        return torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))

    prompt, draft = tokens(width), tokens(new)
    text = prompt
    for _ in range(new):  # by definition: one token after the other
        text = torch.cat([text, causal_logits(text)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(verified(causal_logits, prompt, draft), text[:, width:])


def test_a_right_draft_takes_one_call() -> None:
    prompt = torch.tensor([[1, 2]])
    calls = []

    def counted(tokens: Tensor) -> Tensor:
        calls.append(tokens.shape)
        return causal_logits(tokens)

    right = verified(counted, prompt, torch.zeros(1, 4, dtype=torch.int64))
    calls.clear()
    assert torch.equal(verified(counted, prompt, right), right)
    assert calls == [(1, 5)]
