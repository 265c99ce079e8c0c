"""Choosing the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError


class Sampler:
    """Greedy or top-k sampling with a random generator of its own.

    Args:
        max_new_tokens: at least 1.
        temperature: 0 for greedy.
        top_k: sample among the k likeliest tokens; None for all.
        seed: of the generator.
        stop_at: token id that ends a row.

    Raises:
        InputError: an option out of range.
    """

    def __init__(
        self, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None, seed: int = 0,
        stop_at: int | None = None,
    ) -> None:  # fmt: skip
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number, at least 1")
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature is {temperature!r}; it must be 0 (greedy) or a positive number")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k!r}; it must be at least 1, or None for all tokens")
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.stop_at = stop_at
        self._generator = torch.Generator().manual_seed(seed)
        self._done: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether every row has made its stop token."""
        return self._done is not None and bool(self._done.all())

    def choose(self, logits: Tensor) -> Tensor:
        """(batch, d_vocab) -> (batch,) token ids; a finished row repeats its stop token."""
        if self.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            scaled = logits.float().cpu() / self.temperature
            if self.top_k is not None:
                kth = scaled.topk(min(self.top_k, scaled.shape[-1])).values[:, -1:]
                scaled = scaled.masked_fill(scaled < kth, -torch.inf)
            tokens = torch.multinomial(scaled.softmax(-1), 1, generator=self._generator)[:, 0].to(logits.device)
        if self.stop_at is not None:
            if self._done is not None:
                tokens = torch.where(self._done, torch.full_like(tokens, self.stop_at), tokens)
            self._done = tokens == self.stop_at
        return tokens
