"""A language model that begins at one of its blocks, with the weights of the whole one.

Its blocks are those from `start` on; in the place of the embedding stands a module that returns the residual stream
which entered that block. It is a shadow (`adapters.shadow`): the caller's model is not touched. Any backend can be
opened on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters import Edit, Inspector
from crosslens.adapters.shadow import Shadow

_POSITIONS = ("transformer.wpe", "model.decoder.embed_positions")
"""Learned positions are in the stored residual stream already."""


class Tail:
    """The blocks from `start` on, behind an inspector of the same backend.

    Attributes:
        start: number of the first block that is left; block `start` of the whole model is block 0 here.
    """

    def __init__(self, start: int, lens: Inspector, scene: _Scene) -> None:
        self.start = start
        self._lens = lens
        self._scene = scene

    def run(self, inputs: dict[str, Tensor], edits: Sequence[Edit], times: int) -> Tensor:
        """Logits of `times` copies of the inputs under edits by the names of this model: (rows, columns, d_vocab)."""
        self._scene.times = times
        logits: Tensor = self._lens.run(inputs, edits=edits).logits
        return logits

    def close(self) -> None:
        """Close the inspector."""
        self._lens.close()


def tail_from(lens: Inspector, start: int, state: Tensor, columns: Tensor | None) -> Tail | None:
    """The model of an inspector from one block on; None where it cannot be made.

    Args:
        lens: on the whole model.
        start: first block that is left, at least 1.
        state: (batch, pos, d_model) residual stream that enters it.
        columns: (batch, n) the only columns whose logits are wanted; None for all.
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
    scene = _Scene(state, columns)
    model.set_submodule(family.globals["embed"].module, _Stored(scene))
    model.lm_head = _Unembed(model.lm_head, scene)
    for name in set(_POSITIONS) & {name for name, _ in model.named_modules()}:
        model.set_submodule(name, _Nothing())
    try:
        opened = type(lens)(model, lens.tokenizer)
    except Exception:  # whatever a library raises about a model that is not as it knows it
        return None
    return Tail(start, opened, scene)


@dataclass
class _Scene:
    """What the parts put in read at each run; a backend that copies the module tree copies none of it.

    Args:
        state: (batch, pos, d_model) stored residual stream.
        columns: (batch, n) whose logits are wanted, or None for all.
        times: copies of the inputs in this forward.
    """

    state: Tensor
    columns: Tensor | None
    times: int = 1

    def __deepcopy__(self, memo: Any) -> _Scene:
        return self


class _Stored(nn.Module):
    """Returns the stored residual stream, whatever the token ids."""

    def __init__(self, scene: _Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, ids: Tensor) -> Tensor:
        return self.scene.state.repeat(self.scene.times, 1, 1)


class _Nothing(nn.Module):
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
