"""What grows: one thing at a time, on seeded llamas made for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Edit, Inspector, add
from crosslens.benchmarks.overhead.operations import Hooks
from crosslens.benchmarks.timing import Call

SITES = ("resid_pre", "attn.out", "resid_mid", "mlp.out", "resid_post")
"""Of each block, all (batch, pos, d_model): every further site costs the same copy."""
_PLACES = {
    "resid_pre": ("", "input"), "attn.out": (".self_attn", "output"), "mlp.out": (".mlp", "output"),
    "resid_mid": (".post_attention_layernorm", "input"), "resid_post": ("", "output"),
}  # fmt: skip
VOCABULARY = 128


@dataclass(frozen=True)
class Point:
    """One model, one input, and what is done.

    Args:
        layers, width: of the model; 16 units a head, four times the width in the MLP.
        batch, tokens: of the input.
        sites: recorded; 0 for one of each block, behind it.
        edits: of one position each, a vector added.
    """

    layers: int = 4
    width: int = 64
    batch: int = 1
    tokens: int = 16
    sites: int = 0
    edits: int = 0


@dataclass(frozen=True)
class Axis:
    """What grows along an axis.

    Args:
        unit: of its marginal cost.
        values: smallest first.
        base: everything else.
        field: of a point, that takes the values.
        also: what is done at each point.
    """

    unit: str
    values: tuple[int, ...]
    base: Point
    field: str
    also: str

    def points(self, quick: bool = False) -> dict[int, Point]:
        """Value -> point; the first three where it must be quick."""
        return {x: replace(self.base, **{self.field: x}) for x in (self.values[:3] if quick else self.values)}


AXES: Mapping[str, Axis] = {
    "sites": Axis("site", (1, 5, 20, 80), Point(layers=16), "sites", "some of 80 sites recorded, 16 blocks"),
    "edits": Axis("edit", (1, 4, 16, 64), Point(layers=16), "edits", "a vector added at one position each, 16 blocks"),
    "depth": Axis("block", (2, 4, 8, 16, 32), Point(sites=1), "layers", "one site recorded"),
    "width": Axis("unit of d_model", (64, 128, 256, 512), Point(), "width", "4 sites recorded, 4 blocks"),
    "tokens": Axis("token", (8, 32, 128, 512), Point(), "tokens", "4 sites recorded, 4 blocks"),
    "batch": Axis("row", (1, 4, 16, 64), Point(), "batch", "4 sites recorded, 4 blocks"),
}


def model_of(point: Point) -> Any:
    """A llama of this size with seeded random weights; the caller's random state is as before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=point.width, intermediate_size=4 * point.width, num_hidden_layers=point.layers,
        num_attention_heads=point.width // 16, num_key_value_heads=point.width // 16, vocab_size=VOCABULARY,
        max_position_embeddings=1024, initializer_range=0.2, use_cache=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def ids_of(point: Point) -> Tensor:
    """(batch, pos) token ids."""
    return torch.randint(3, VOCABULARY, (point.batch, point.tokens), generator=torch.Generator().manual_seed(0))


def recorded(point: Point) -> list[str]:
    """Names of the sites; those of fewer are among those of more."""
    if not point.sites:
        return [] if point.edits else [f"blocks.{i}.resid_post" for i in range(point.layers)]
    if point.sites == 1:
        return [f"blocks.{point.layers - 1}.resid_post"]
    every = [f"blocks.{i}.{local}" for i in range(point.layers) for local in SITES]
    last = every.pop()
    random.Random(0).shuffle(every)
    return [last, *every][: point.sites]


def added(point: Point) -> list[tuple[int, int, Tensor]]:
    """(block, position, vector (d_model,)) of each edit."""
    made = torch.Generator().manual_seed(1)
    return [
        (i % point.layers, i // point.layers, 3 * torch.randn(point.width, generator=made)) for i in range(point.edits)
    ]


def edits_of(point: Point, device: torch.device) -> list[Edit]:
    """The same for an Inspector."""
    return [
        add(f"blocks.{layer}.resid_post", vector.to(device).expand(point.batch, 1, -1), positions=[position])
        for layer, position, vector in added(point)
    ]


def through(lens: Inspector, point: Point, ids: Tensor) -> Call:
    """Through an Inspector: the captured tensors, or the edited logits."""
    names, edits = recorded(point), edits_of(point, ids.device)
    if point.edits:
        return lambda: lens.run(ids, edits=edits).logits
    return lambda: list(lens.run(ids, capture=names).values())


def native(model: Any, point: Point, ids: Tensor) -> Call:
    """The same in plain hooks."""
    if not point.edits:
        places = {}
        for name in recorded(point):
            _, layer, local = name.split(".", 2)
            path, side = _PLACES[local]
            places[name] = (f"model.layers.{layer}{path}", side)
        hooks = Hooks(model, places)
        return lambda: hooks.capture(ids)
    changes: dict[str, list[tuple[int, Tensor]]] = {}
    for block, position, vector in added(point):
        changes.setdefault(f"model.layers.{block}", []).append((position, vector.to(ids.device)))

    def change(path: str) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            for position, vector in changes[path]:
                output[:, position] += vector
            return output

        return hook

    forward = bare(model, ids)

    def call() -> Tensor:
        handles = [model.get_submodule(path).register_forward_hook(change(path)) for path in changes]
        try:
            return forward()
        finally:
            for handle in handles:
                handle.remove()

    return call


def bare(model: Any, ids: Tensor) -> Callable[[], Tensor]:
    """The forward alone."""

    def call() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(ids, use_cache=False).logits
        return logits

    return call


def facts(model: Any) -> dict[str, int]:
    """Parameters and modules, which wrapping may cost by."""
    return {"parameters": sum(p.numel() for p in model.parameters()), "modules": len(list(model.modules()))}
