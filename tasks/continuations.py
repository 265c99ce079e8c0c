"""What comes next: the token that an answer begins with, and when two greedy texts may part.

Greedy decoding is discontinuous: where the two likeliest tokens lie as close as rounding reaches, either is right, and
what follows cannot be compared. So figures of a generated text count as long as the tokens before them are the
reference's, and the first token that is not must have had a margin below rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosslens.adapters import InputError

Array = NDArray[np.float64]


def asked(task: str, tokenizer: Any, text: str, answer: str) -> tuple[list[int], int]:
    """A prompt's token ids, without what a tokenizer puts at the end of a text, and the answer's first token.

    Raises:
        InputError: the tokenizer makes no token of the prompt, or of the answer after it.
    """
    alone, whole = (list(tokenizer(each)["input_ids"]) for each in (text, f"{text} {answer}"))
    end = next((p for p, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    if not 0 < end < len(whole):
        raise InputError(f"task {task!r}: the tokenizer makes no token of {text!r} or of {answer!r} after it")
    return whole[:end], whole[end]


def margins(logits: Tensor) -> Tensor:
    """(..., d_vocab) -> (...), by how much the largest logit exceeds the next, float64."""
    top = logits.double().topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def followed(ours: Array, right: Array, margin: Array, tolerance: Array) -> tuple[NDArray[np.bool_], bool]:
    """How far a greedy text follows the reference.

    Args:
        ours, right: (..., step) tokens.
        margin: (..., step) of the reference: by how much its token's logit exceeds the next.
        tolerance: (..., step) what rounding can move such a margin by.

    Returns:
        (..., step) whether all tokens before a step are the reference's; and whether every text that parts from the
        reference does so where the margin is within rounding.
    """
    same = ours == right
    before = np.cumprod(np.concatenate([np.ones_like(same[..., :1]), same[..., :-1]], axis=-1), axis=-1).astype(bool)
    parting = before & ~same
    return before, bool((margin <= tolerance)[parting].all())


def verified(logits_of: Callable[[Tensor], Tensor], prompt: Tensor, draft: Tensor) -> Tensor:
    """The greedy continuation by `logits_of`, by one call for the whole draft where the draft is right.

    A causal model's logits over prompt and draft say at each position what it would have chosen; up to the first
    position where the draft has another token they are those of greedy decoding. As in speculative decoding: Leviathan
    et al. 2023, arXiv:2211.17192.

    Args:
        logits_of: (batch, pos) tokens -> (batch, pos, d_vocab) logits; last called for prompt and continuation, but
            for the latter's last token.
        prompt: (batch, pos) tokens, without padding.
        draft: (batch, new) tokens that the continuation may be.

    Returns:
        (batch, new) tokens.
    """
    start = prompt.shape[1] - 1
    tokens = draft.clone()
    while True:  # each turn makes at least one more token right
        chosen = logits_of(torch.cat([prompt, tokens[:, :-1]], dim=1))[:, start:].argmax(-1).to(tokens.device)
        if torch.equal(chosen, tokens):
            return tokens
        # Right up to and with the first difference; what follows it was chosen after another token, and is a draft.
        tokens = chosen
