"""Padded token ids without a mask are refused; what may be real tokens is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.padding import pad_token, refuse_unmasked
from crosslens.tasks import load_model

ROWS = st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=6), min_size=2, max_size=4)


@given(rows=ROWS, left=st.booleans())
def test_rows_padded_to_one_length_are_refused_and_rows_of_one_length_are_not(
    rows: list[list[int]], left: bool
) -> None:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])
    if len({len(row) for row in rows}) == 1:
        refuse_unmasked(ids, ids, 0)
        return
    shortest = min(map(len, rows))
    with pytest.raises(InputError, match=rf"{'begin' if left else 'end'}s with {width - shortest} pad tokens \(id 0\)"):
        refuse_unmasked(ids, ids, 0)
    refuse_unmasked({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids, 0)
    refuse_unmasked(["texts", "are padded by crosslens"], ids, 0)
    refuse_unmasked(ids, ids, None)
    refuse_unmasked(ids, ids, 100)


@pytest.mark.parametrize(
    ("ids", "refused"),
    [
        ([[0, 5, 6], [0, 7, 8]], False),  # every row begins with <bos>, which pads too
        ([[5, 6, 0], [7, 8, 0]], False),
        ([[5, 0, 6], [7, 8, 9]], False),  # in the middle it pads nothing
        ([[0, 5, 6]], False),
        ([[0, 0, 5, 6]], True),  # as padding="max_length" makes it
        ([[5, 6, 0, 0]], True),
        ([[0, 5, 6], [7, 8, 9]], True),
        ([[5, 6, 7], [8, 9, 0]], True),
        ([[0, 0, 0]], True),
    ],
)
def test_what_looks_padded(ids: list[list[int]], refused: bool) -> None:
    tensor = torch.tensor(ids)
    for inputs in (tensor, {"input_ids": tensor}):
        if refused:
            with pytest.raises(InputError, match="attention_mask"):
                refuse_unmasked(inputs, tensor, 0)
        else:
            refuse_unmasked(inputs, tensor, 0)


def test_the_models_own_pad_token_comes_first() -> None:
    config, tokenizer = SimpleNamespace(pad_token_id=3), SimpleNamespace(pad_token_id=7)
    assert pad_token(config, tokenizer) == 3
    assert pad_token(SimpleNamespace(pad_token_id=None), tokenizer) == 7
    assert pad_token(None, None) is None


def test_every_way_into_the_model_refuses() -> None:
    model, tokenizer = load_model("tiny-gpt2")
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    with open_inspector("hooks", model, tokenizer) as lens:
        for act in (
            lambda: lens.run(ids),
            lambda: lens.gradients(ids, "embed", lambda logits: logits[:, -1, 5]),
            lambda: lens.generate(ids, max_new_tokens=1),
            lambda: lens.watch(ids, "embed", lambda site, tensor: None),
        ):
            with pytest.raises(InputError, match=r"row 1 begins with 2 pad tokens \(id 0\)"):
                act()
        masked = lens.run({"input_ids": ids, "attention_mask": mask}).logits[1, -1]
        torch.testing.assert_close(masked, lens.run(ids[1:, 2:]).logits[0, -1])
