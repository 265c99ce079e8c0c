"""A language model that begins at one of its blocks, with the weights of the whole one.

Its blocks are those from `start` on; in the place of the embedding stands a module that returns the residual stream
which entered that block. It can run the last columns alone, with the keys and values that the others had. It is a
shadow (`adapters.shadow`): the caller's model is not touched. Any backend can be opened on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters import CrosslensError, Edit, Inspector
from crosslens.adapters.shadow import Shadow

_POSITIONS = ("transformer.wpe", "model.decoder.embed_positions")
"""Learned positions are in the stored residual stream already."""

Stored = dict[int, tuple[Tensor, Tensor]]
"""Block -> keys (after rotary) and values, each (batch, kv head, pos, d_head)."""


class Tail:
    """The blocks from `start` on, behind an inspector of the same backend.

    Attributes:
        start: number of the first block that is left; block `start` of the whole model is block 0 here.
    """

    def __init__(self, start: int, lens: Inspector, scene: _Scene) -> None:
        self.start = start
        self._lens = lens
        self._scene = scene

    def run(
        self, inputs: dict[str, Tensor], edits: Sequence[Edit], times: int, columns: Tensor | None = None, cut: int = 0,
        stored: Stored | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits of `times` copies of the inputs under edits by the names of this model: (rows, columns, d_vocab).

        Args:
            inputs: from column `cut` on.
            columns: (batch, n) the only ones whose logits are wanted, counted from `cut`; None for all.
            cut: the first column that is run.
            stored: keys and values of the columns before it.
        """
        scene = self._scene
        scene.times, scene.columns, scene.cut = times, columns, cut
        scene.cache = _cache(stored, self.start, times, cut) if cut and stored else None
        try:
            logits: Tensor = self._lens.run(inputs, edits=edits).logits
        finally:
            scene.cache = None
        return logits

    def keep(self, inputs: dict[str, Tensor]) -> Stored:
        """Keys and values of every block, from a run without edits; none where the model keeps them otherwise."""
        from transformers import DynamicCache

        scene = self._scene
        scene.times, scene.columns, scene.cut, scene.cache = 1, None, 0, DynamicCache()
        try:
            self._lens.run(inputs)
            found = {i: (layer.keys, layer.values) for i, layer in enumerate(scene.cache.layers) if i >= self.start}
            whole = all(keys.shape[-2] == inputs["input_ids"].shape[1] for keys, _ in found.values())
            return found if whole else {}
        except (CrosslensError, RuntimeError, AttributeError, TypeError):  # a library that cannot take such a model
            return {}
        finally:
            scene.cache = None

    def close(self) -> None:
        """Close the inspector."""
        self._lens.close()


def tail_from(lens: Inspector, start: int, state: Tensor) -> Tail | None:
    """The model of an inspector from one block on; None where it cannot be made.

    Args:
        lens: on the whole model.
        start: first block that is left, at least 1.
        state: (batch, pos, d_model) residual stream that enters it.
    """
    family = lens.architecture.family
    if family is None or "logits" not in family.globals:
        return None
    path, _, inside = family.blocks["resid_post"].module.partition(".{L}")
    if inside:
        return None
    model: Any = Shadow(lens.model).module
    blocks = model.get_submodule(path)
    model.set_submodule(path, nn.ModuleList(list(blocks)[start:]))
    model.config.num_hidden_layers -= start
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[start:]
    scene = _Scene(state)
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
    return Tail(start, opened, scene)


def _cache(stored: Stored, start: int, times: int, cut: int) -> Any:
    """Hugging Face's cache with the first columns of each block that is left, for so many copies of the inputs."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for block in range(max(stored) + 1):  # blocks have kept their numbers; of those before, only the length is asked
        keys, values = (part[:, :, :cut] for part in stored[max(block, start)])
        copies = times if block >= start else 1
        cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), block)
    return cache


@dataclass
class _Scene:
    """What the parts put in read at each run; a backend that copies the module tree copies none of it.

    Args:
        state: (batch, pos, d_model) stored residual stream.
        columns: (batch, n) whose logits are wanted, or None for all.
        times: copies of the inputs in this forward.
        cut: the first column of this forward.
        cache: Hugging Face's own, with the columns before it.
    """

    state: Tensor
    columns: Tensor | None = None
    times: int = 1
    cut: int = 0
    cache: Any = None

    def give_cache(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """What a forward is called with when there is a cache; no row is padded then."""
        if self.cache is None:
            return None
        return args, kwargs | {"past_key_values": self.cache, "attention_mask": None}

    def __deepcopy__(self, memo: Any) -> _Scene:
        return self


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
        return self.scene.state[:, self.scene.cut :].repeat(self.scene.times, 1, 1)


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
        if self.scene.columns is not None:
            columns = self.scene.columns.repeat(self.scene.times, 1).to(x.device)
            x = x[torch.arange(len(columns), device=x.device)[:, None], columns]
        out: Tensor = self.head(x)
        return out
