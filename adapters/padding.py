"""Padded token ids without their mask: the model would read the padding as text, and nobody would notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import InputError


def pad_token(config: Any, tokenizer: Any) -> int | None:
    """The id that pads, as the model's config has it, or else the tokenizer."""
    for holder in (config, tokenizer):
        found = getattr(holder, "pad_token_id", None)
        if isinstance(found, int):
            return found
    return None


def refuse_unmasked(inputs: Any, ids: Tensor | None, pad: int | None) -> None:
    """Refuse ids that look padded where the caller gave no mask.

    They do where a row begins or ends with two pad tokens or more, or where rows differ in how many they begin or end
    with: one at the edge of every row may be a token that stands there in its own right, as where texts end in `<eos>`
    and that pads too.

    Args:
        inputs: as the caller gave them; texts are padded, and masked, by crosslens itself.
        ids: (batch, pos), or None.
        pad: the id that pads.

    Raises:
        InputError: says which row, and how to say that the tokens are real.
    """
    given = isinstance(inputs, Tensor) or (isinstance(inputs, Mapping) and inputs.get("attention_mask") is None)
    if not given or ids is None or pad is None:
        return
    is_pad = (inputs if isinstance(inputs, Tensor) else inputs["input_ids"]).cpu() == pad  # no GPU is waited for
    for side, columns in (("begin", is_pad), ("end", is_pad.flip(1))):
        run = columns.long().cumprod(1).sum(1)  # pad tokens before the first other one
        longest = int(run.argmax())
        if int(run[longest]) > 1 or not bool(torch.eq(run, run[0]).all()):
            raise InputError(
                f"token ids: row {longest} {side}s with {int(run[longest])} pad tokens (id {pad}), and there is no "
                "attention_mask, so they would be read as text; give {'input_ids': ids, 'attention_mask': mask}, with "
                "torch.ones_like(ids) if they are meant"
            )
