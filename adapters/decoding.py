"""Generation: one forward through the library a step, and the choice of the next token.

The loop is the same for every backend, so that a position means the same whatever a library's own `generate` does with
its cache, its masks and its hooks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .edits import Edit
from .errors import EditError, InputError
from .inputs import Geometry, Inputs, extend
from .run import Generation
from .sites import Site

if TYPE_CHECKING:
    from .inspector import Inspector


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


def decode(
    lens: Inspector, ready: Inputs, capture: list[Site], edits: list[Edit], sampler: Sampler, use_cache: bool
) -> Generation:
    """Decode with captures and edits at absolute positions.

    Args:
        lens: whose `_forward` runs each step.
        ready: left-padded inputs.
        capture, edits: resolved sites, and edits as the caller made them.
        sampler: chooses tokens and says when to stop.
        use_cache: read only the newest token in each step, or everything again.

    Raises:
        EditError: an edit of attn.pattern that only a cache can place.
    """
    assert ready.ids is not None
    for edit in edits:
        if not use_cache and edit.kind not in ("zero", "scale") and edit.site.endswith("attn.pattern"):
            raise EditError(
                f"{edit.kind} at {edit.site!r}: without a cache earlier queries are computed again, and would attend "
                "to tokens that did not exist at their step; leave use_cache on"
            )
    start = replace(ready.geometry, generating=True, new_positions=sampler.max_new_tokens - 1)
    plan = lens._plan(ready, start, capture, edits, None)
    mask = ready.mask if ready.mask is not None else torch.ones_like(ready.ids)
    cache = _new_cache() if use_cache else None
    tokens, geometry, logits, pieces = ready.ids, start, [], []
    for step in range(sampler.max_new_tokens):
        if step:
            geometry = extend(geometry, step, cached=use_cache)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        assert geometry.position is not None
        read = tokens[:, -1:] if step and use_cache else tokens
        plan.geometry, plan.captured, plan.reached = geometry, {}, set()
        plan.kwargs = {
            "input_ids": read,
            "position_ids": geometry.position.clamp(min=0).to(tokens.device),
            "use_cache": use_cache,
        }
        if ready.mask is not None:
            plan.kwargs["attention_mask"] = lens._mask(mask, read.shape[1])
        if use_cache:
            plan.kwargs["past_key_values"] = cache
        output = lens._execute(plan)
        pieces.append(plan.captured)
        logits.append(output.logits[:, -1].clone())
        tokens = torch.cat([tokens, sampler.choose(logits[-1])[:, None]], dim=1)
        if sampler.finished:
            break
    captured = {site.name: _joined([p[site.name] for p in pieces], site, use_cache) for site in capture}
    return Generation(captured, tokens, torch.stack(logits, dim=1), _read_in(ready.geometry, len(logits)))


def _read_in(geometry: Geometry, new: int) -> Geometry:
    """Geometry of a prompt and the generated tokens that were read: all of `new` but the last."""
    for step in range(1, new):
        geometry = extend(geometry, step, cached=False)
    return geometry


def _joined(pieces: list[Tensor], site: Site, cached: bool) -> Tensor:
    """One tensor over all positions read, from one piece a step."""
    if not cached:
        return pieces[-1]
    if site.local != "attn.pattern":
        return torch.cat(pieces, dim=1)
    keys = pieces[-1].shape[-1]  # later keys did not exist for earlier queries: their attention is 0
    return torch.cat([nn.functional.pad(p, (0, keys - p.shape[-1])) for p in pieces], dim=2)


def _new_cache() -> Any:
    """A cache that keeps every key, also where a model's window slides: its mask says what a query sees."""
    from transformers import DynamicCache  # imported here: transformers takes seconds, and not every model is its

    return DynamicCache()
