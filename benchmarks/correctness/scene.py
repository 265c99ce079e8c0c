"""What a cell is run on: a tiny model whose weights every dtype holds exactly, inputs, and the edit that is asked for.

Weights and edit values are those that bfloat16 can hold. So one cell has one right answer in all dtypes, and the
float64 run of a cell is the rerun that tells rounding from error in the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Edit, Target, add, apply, replace, scale, zero
from crosslens.adapters.architectures import describe
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.conformance.right import LAYER

from .design import MODULES, Cell

TOKENS = 8
NEW = 3
"""Tokens that are generated."""

STEPS = 4
"""Nodes of integrated gradients: too few, so that their rule shows."""

FACTOR = -2.0
TARGET = {"token": 5, "minus": 9, "position": -2}
Outputs = dict[str, Tensor]
"""What came out of a cell, by name: `site`, `logits`, `captured logits`, `gradient`, `tokens`, `scores`, `units`."""


def dtype_of(name: str) -> torch.dtype:
    """`torch.float32` of `float32`."""
    found: torch.dtype = getattr(torch, name)
    return found


def model_of(family: str, dtype: str, attention: str) -> tuple[Any, Any]:
    """A tiny model, new, with weights that bfloat16 holds exactly, and its tokenizer."""
    model, tokenizer = tiny_model(family, dtype=dtype_of(dtype), attn_implementation=attention)
    model.load_state_dict(_weights(family))
    return model, tokenizer


@cache
def _weights(family: str) -> Mapping[str, Tensor]:
    weights: Mapping[str, Tensor] = tiny_model(family, dtype=torch.bfloat16)[0].state_dict()
    return weights


def short(value: Tensor) -> Tensor:
    """A float64 tensor, rounded to what bfloat16 holds."""
    return value.bfloat16().double()


@cache
def sizes_of(family: str) -> tuple[int, Mapping[str, str]]:
    """The vocabulary's size, and what the module sites of a cell are called in this family."""
    model = tiny_model(family, dtype=torch.bfloat16)[0]
    architecture = describe(model)
    names = {}
    for alias, local in zip(MODULES, ("mlp.post", "mlp.out"), strict=True):
        address = architecture.address(architecture.sites.canonical[f"blocks.{LAYER}.{local}"])
        names[alias] = f"module:{address.module}:{address.side}"
    return architecture.sizes["d_vocab"], names


@dataclass(frozen=True)
class Scene:
    """Inputs of a cell, and what is asked of them."""

    cell: Cell

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        if self.cell.padding == "none":
            return [TOKENS] * self.cell.batch
        return [8, 6, 4] if self.cell.batch == 3 else [6]

    @cached_property
    def ids(self) -> Tensor:
        """(batch, 8) token ids."""
        drawn = torch.randint(3, sizes_of(self.cell.family)[0], (3, TOKENS), generator=_generator(7))
        return drawn[: self.cell.batch]

    @cached_property
    def other_ids(self) -> Tensor:
        """(batch, 8) other ones."""
        return (self.ids * 7 + 11) % (sizes_of(self.cell.family)[0] - 3) + 3

    @cached_property
    def mask(self) -> Tensor:
        """(batch, 8) bool: which are real."""
        column, length = torch.arange(TOKENS)[None], torch.tensor(self.lengths)[:, None]
        return column >= TOKENS - length if self.cell.padding == "left" else column < length

    @property
    def inputs(self) -> dict[str, Tensor]:
        """As an inspector takes them."""
        return {"input_ids": self.ids.clone()} | (
            {} if self.cell.padding == "none" else {"attention_mask": self.mask.long()}
        )

    @cached_property
    def left(self) -> tuple[Tensor, Tensor]:
        """Ids and mask with the padding moved to the left, as generation has them."""
        if self.cell.padding != "right":
            return self.ids, self.mask
        shift = [TOKENS - length for length in self.lengths]
        ids = torch.stack([row.roll(by) for row, by in zip(self.ids, shift, strict=True)])
        return ids, torch.stack([row.roll(by) for row, by in zip(self.mask, shift, strict=True)])

    @property
    def site(self) -> str:
        """As the inspector knows it."""
        return sizes_of(self.cell.family)[1].get(self.cell.site, self.cell.site)

    @property
    def canonical(self) -> str:
        """As the reference knows it."""
        locals_ = {MODULES[0]: f"blocks.{LAYER}.mlp.post", MODULES[1]: f"blocks.{LAYER}.mlp.out"}
        return locals_.get(self.cell.site, self.cell.site)

    @property
    def target(self) -> Target:
        """Of attribution."""
        return Target(TARGET["token"], minus=TARGET["minus"], position=TARGET["position"])

    @cached_property
    def selection(self) -> dict[str, list[int]]:
        """What the edit selects."""
        if self.cell.where == "positions":
            late = min(self.lengths) + 1  # while generating: one that the shortest row has yet to generate
            return {"positions": [1, late] if self.cell.operation == "generate+add" else [-1, 1]}
        if self.cell.where == "rows":
            return {"rows": [0, 2] if self.cell.batch == 3 else [0]}
        if self.cell.where == "whole":
            return {}
        if self.cell.local == "attn.pattern":
            return {"heads": [1], "units": [0, 2]}
        heads = {"heads": [1]} if self.cell.local in ("attn.q", "attn.k", "attn.v", "attn.z") else {}
        return heads | {"units": [1, 2, 5]}

    @cached_property
    def weight(self) -> Tensor:
        """(batch, 8, d_vocab) of the metric whose gradient is taken: the sum of the logits with these weights."""
        drawn = torch.randn(3, TOKENS, sizes_of(self.cell.family)[0], generator=_generator(5), dtype=torch.float64)
        return short(drawn)[: self.cell.batch] * self.mask[:, :, None]

    def metric(self, logits: Tensor) -> Tensor:
        """(batch,) of (batch, 8, d_vocab) logits."""
        return (logits * self.weight.to(logits.dtype)).sum((1, 2))

    def edit(self, site: str, value: Tensor | None) -> Edit:
        """The edit that the cell asks for, at this name of its site; `value` as `drawn` gave it, in any dtype."""
        kind = self.cell.operation.removeprefix("generate+")
        if kind in ("replace", "add"):
            assert value is not None
            return (replace if kind == "replace" else add)(site, value, **self.selection)
        if kind == "scale":
            return scale(site, FACTOR, **self.selection)
        if kind == "zero":
            return zero(site, **self.selection)
        return apply(site, double if self.cell.local == "attn.pattern" else reverse_and_double, **self.selection)

    def drawn(self, whole: Tensor) -> Tensor | None:
        """Random values of the slice that the edit selects, twice as large as those of the site, which is `whole`."""
        if self.cell.operation not in ("replace", "add", "generate+add"):
            return None
        shape, pattern = list(whole.shape), self.cell.local == "attn.pattern"
        axis = {"rows": 0, "heads": 1 if pattern else 2, "positions": 2 if pattern else 1, "units": whole.ndim - 1}
        if self.cell.operation == "generate+add":
            shape[1] = 1  # one value for every position, unless some are named
        for name, chosen in self.selection.items():
            shape[axis[name]] = len(chosen)
        size = 2 * (whole if pattern else whole[self.mask]).square().mean().sqrt()
        value = torch.randn(shape, generator=_generator(3), dtype=torch.float64) * size
        if pattern and "units" not in self.selection:  # no weight on padding
            value = value * self.mask[self.selection.get("rows", slice(None))][:, None, None]
        return short(value)


def double(part: Tensor) -> Tensor:
    """In place, as a user's function may be."""
    return part.mul_(2)


def reverse_and_double(part: Tensor) -> Tensor:
    """The last axis reversed, and twice as large."""
    part.mul_(2)
    return part.flip(-1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
