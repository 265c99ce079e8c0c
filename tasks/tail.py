"""A language model of which a last part can run alone: the blocks from some block on, the columns from some column on.

It is a shadow (`adapters.shadow`) with the weights of the whole model, which is not touched. In the place of the
embedding stands a module that returns the stored residual stream which entered the first block that runs; the blocks
before it give back what they get. Of the columns that do not run the stored keys and values are read. Any backend can
be opened on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters import CrosslensError, Edit, Inspector
from crosslens.adapters.shadow import Shadow

REFUSALS = (CrosslensError, RuntimeError, AttributeError, TypeError, IndexError)
"""What a library raises that cannot take such a model."""
_POSITIONS = ("transformer.wpe", "model.decoder.embed_positions")
"""Learned positions are in the stored residual stream already."""

Stored = dict[int, tuple[Tensor, Tensor]]
"""Block -> keys (after rotary) and values, each (batch, kv head, pos, d_head)."""


@dataclass
class Part:
    """What runs in one forward.

    Args:
        start: the first block.
        state: (batch, pos, d_model) the residual stream that enters it.
        times: copies of the inputs.
        columns: (batch, n) the only columns whose logits are wanted, counted from `cut`; None for all.
        cut: the first column that is run.
        stored: keys and values of the columns before it.
    """

    start: int
    state: Tensor
    times: int = 1
    columns: Tensor | None = None
    cut: int = 0
    stored: Stored | None = None


class Tail:
    """Such a model, behind an inspector of the same backend."""

    def __init__(self, lens: Inspector, scene: _Scene) -> None:
        self._lens = lens
        self._scene = scene

    def run(self, inputs: dict[str, Tensor], edits: Sequence[Edit], part: Part) -> Tensor:
        """Logits under edits: (rows, columns, d_vocab).

        Args:
            inputs: `part.times` copies, from column `part.cut` on.
            edits: at the blocks that run, positions counted from `part.cut`.
            part: what runs.
        """
        cache = _cache(part) if part.cut else None
        with self._scene.set(part, cache):
            logits: Tensor = self._lens.run(inputs, edits=edits).logits
        return logits

    def keep(self, inputs: dict[str, Tensor], part: Part) -> Stored:
        """Keys and values of the blocks that run, without edits; none where the model keeps them otherwise."""
        from transformers import DynamicCache

        cache = DynamicCache()
        with self._scene.set(part, cache):
            self._lens.run(inputs)
        found = {i: (layer.keys, layer.values) for i, layer in enumerate(cache.layers) if i >= part.start}
        columns = inputs["input_ids"].shape[1]
        return found if all(keys.shape[-2] == columns for keys, _ in found.values()) else {}

    def close(self) -> None:
        """Close the inspector."""
        self._lens.close()


def tail_of(lens: Inspector) -> Tail | None:
    """The model of an inspector, ready to run in parts; None where it cannot be made."""
    family = lens.architecture.family
    if family is None or "logits" not in family.globals:
        return None
    path, _, inside = family.blocks["resid_post"].module.partition(".{L}")
    if inside:
        return None
    model: Any = Shadow(lens.model).module
    scene = _Scene()
    for number, block in enumerate(model.get_submodule(path)):
        block.__class__ = type(type(block).__name__, (_Skipped, type(block)), {})
        block._number, block._scene = number, scene
    embed = family.globals["embed"].module
    model.set_submodule(embed, _Stored(model.get_submodule(embed), scene))
    model.register_forward_pre_hook(scene.give_cache, with_kwargs=True)
    model.lm_head = _Unembed(model.lm_head, scene)
    for name in set(_POSITIONS) & {name for name, _ in model.named_modules()}:
        model.set_submodule(name, _Nothing(model.get_submodule(name)))
    try:
        opened = type(lens)(model, lens.tokenizer)
    except Exception:  # whatever a library raises about a model that is not as it knows it
        return None
    return Tail(opened, scene)


def _cache(part: Part) -> Any:
    """Hugging Face's cache with the first columns of each block that runs; of the others only the length is asked."""
    from transformers import DynamicCache

    assert part.stored, "columns are left out only where their keys are stored"
    cache = DynamicCache()
    for block in range(max(part.stored) + 1):
        keys, values = (each[:, :, : part.cut] for each in part.stored[max(block, part.start)])
        copies = part.times if block >= part.start else 1
        cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), block)
    return cache


class _Scene:
    """What the modules put in read at each run; a backend that copies the module tree copies none of it."""

    def __init__(self) -> None:
        self.part = Part(0, torch.empty(0))
        self.cache: Any = None

    def set(self, part: Part, cache: Any) -> _Scene:
        """For one run, as a context."""
        self.part, self.cache = part, cache
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.part, self.cache = Part(0, torch.empty(0)), None

    def give_cache(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """What a forward is called with when there is a cache; no row is padded then."""
        if self.cache is None:
            return None
        return args, kwargs | {"past_key_values": self.cache, "attention_mask": None}

    def __deepcopy__(self, memo: Any) -> _Scene:
        return self


class _Skipped(nn.Module):
    """A block that gives back what it gets where a forward begins behind it."""

    _number: int
    _scene: _Scene

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._number < self._scene.part.start:
            return args[0] if args else kwargs["hidden_states"]
        return super().forward(*args, **kwargs)


class _Instead(nn.Module):
    """Stands in the place of an embedding; libraries ask its weight for sizes."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    @property
    def weight(self) -> Any:
        """(number of tokens or positions, d_model)"""
        return self.embed.weight


class _Stored(_Instead):
    """Returns the stored residual stream, whatever the token ids."""

    def __init__(self, embed: nn.Module, scene: _Scene) -> None:
        super().__init__(embed)
        self.scene = scene

    def forward(self, ids: Tensor) -> Tensor:
        part = self.scene.part
        return part.state[:, part.cut :].repeat(part.times, 1, 1)


class _Nothing(_Instead):
    """Adds no positions."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(())


class _Unembed(nn.Module):
    """The unembedding, at the wanted columns only."""

    def __init__(self, head: nn.Module, scene: _Scene) -> None:
        super().__init__()
        self.head = head
        self.scene = scene

    @property
    def weight(self) -> Any:
        """(d_vocab, d_model)"""
        return self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        part = self.scene.part
        if part.columns is not None:
            columns = part.columns.repeat(part.times, 1).to(x.device)
            x = x[torch.arange(len(columns), device=x.device)[:, None], columns]
        out: Tensor = self.head(x)
        return out
