"""What a patching map costs: as a sweep, as a forward an edit, and as each library's own loop.

The map is that of the task `ioi`: what the clean prompt has in every block's residual stream at every position, and in
every head, put into the corrupted one. A sweep is timed whole; a loop is timed over edits drawn at random, as many in
each round, since it costs as much for each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Edit, Inspector, load_backend, replace
from crosslens.adapters.shadow import Shadow
from crosslens.tasks import load_model, load_task, sweep

from . import turns

Way = Callable[[list[int]], Tensor]
"""Numbers of edits -> the metric under each, (edits,)."""
BACKENDS = ("hooks", "nnsight", "pyvene", "transformer_lens")
LOCALS = ("resid_post", "attn.z")
"""Of each map, the site within a block."""
_NEAR = 1e-3  # of the largest metric


class Map:
    """The edits of one map, and what is read: the logit of the clean answer minus that of the corrupted one."""

    def __init__(self, model: Any, tokenizer: Any, local: str) -> None:
        self.model, self.local = model, local
        pair = load_task("ioi").prepare(model, tokenizer, size="smoke").pairs[0]
        self.ids, self.clean_ids = pair.corrupt, pair.clean
        self.right, self.wrong = pair.answers
        with load_backend("hooks")(model) as lens:
            self.layers = lens.architecture.sizes["n_layers"]
            self.heads = lens.architecture.sizes["head"]
            self.clean = lens.run(self.clean_ids, capture=f"blocks.*.{local}")
        inner = range(self.heads if local == "attn.z" else self.ids.shape[1])
        self.cells = [(layer, i) for layer in range(self.layers) for i in inner]
        self.edits = [self._edit(layer, i) for layer, i in self.cells]

    def _edit(self, layer: int, i: int) -> list[Edit]:
        site = f"blocks.{layer}.{self.local}"
        value = self.clean[site]
        if self.local == "attn.z":
            return [replace(site, value[:, :, i : i + 1], heads=[i])]
        return [replace(site, value[:, i : i + 1], positions=[i])]

    def metric(self, logits: Tensor) -> Tensor:
        """(batch, pos, d_vocab) -> (batch,)"""
        return logits[:, -1, self.right] - logits[:, -1, self.wrong]


def swept(patches: Map, lens: Inspector) -> Way:
    """`sweep`: the metric reads the last position alone."""
    return lambda which: sweep(
        lens, patches.ids, [patches.edits[i] for i in which], patches.metric, logits_at=[-1]
    ).flatten()


def looped(patches: Map, lens: Inspector) -> Way:
    """A forward an edit, through the Inspector."""
    return lambda which: torch.cat(
        [patches.metric(lens.run(patches.ids, edits=patches.edits[i]).logits) for i in which]
    )


def hooks_directly(patches: Map) -> Way:
    """PyTorch: a hook registered for each forward and removed after it."""
    model = patches.model
    block = model.model.layers

    def one(layer: int, i: int) -> Tensor:
        value = patches.clean[f"blocks.{layer}.{patches.local}"]

        def at_block(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, i] = value[:, i]
            return output

        def at_heads(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            z = args[0].clone().reshape(*args[0].shape[:-1], *value.shape[-2:])
            z[:, :, i] = value[:, :, i]
            return (z.flatten(-2),)

        if patches.local == "attn.z":
            handle = block[layer].self_attn.o_proj.register_forward_pre_hook(at_heads)
        else:
            handle = block[layer].register_forward_hook(at_block)
        with torch.no_grad():
            logits: Tensor = model(patches.ids, use_cache=False, logits_to_keep=1).logits
        handle.remove()
        return patches.metric(logits)

    return lambda which: torch.cat([one(*patches.cells[i]) for i in which])


def transformer_lens_directly(patches: Map) -> Way:
    """TransformerLens: `run_with_hooks` in a loop, which is what its `patching` module does."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    shadow = Shadow(patches.model).module
    bridge = build_bridge_from_module(shadow, type(shadow).__name__, hf_config=shadow.config, dtype=torch.float32)

    def one(layer: int, i: int) -> Tensor:
        value = patches.clean[f"blocks.{layer}.{patches.local}"]
        heads = patches.local == "attn.z"

        def patch(act: Tensor, hook: Any) -> Tensor:
            if heads:
                act = act.reshape(value.shape) if act.ndim == 3 else act
                act[:, :, i] = value[:, :, i]
            else:
                act[:, i] = value[:, i]
            return act

        name = f"blocks.{layer}.attn.hook_z" if heads else f"blocks.{layer}.hook_resid_post"
        with torch.no_grad():
            return patches.metric(bridge.run_with_hooks(patches.ids, fwd_hooks=[(name, patch)]))

    return lambda which: torch.cat([one(*patches.cells[i]) for i in which])


def nnsight_directly(patches: Map) -> Way:
    """nnsight: a trace an edit, as its tutorial on activation patching does."""
    from nnsight import NNsight

    wrapped = NNsight(Shadow(patches.model).module)
    layers = wrapped.model.layers

    def one(layer: int, i: int) -> Tensor:
        value, found = patches.clean[f"blocks.{layer}.{patches.local}"], []
        with torch.no_grad():
            if patches.local == "attn.z":
                width = value.shape[-1]
                flat, at = value.flatten(-2), slice(i * width, (i + 1) * width)
                with wrapped.trace(patches.ids):
                    layers[layer].self_attn.o_proj.input[:, :, at] = flat[:, :, at]
                    found.append(wrapped.lm_head.output)
            else:
                with wrapped.trace(patches.ids):
                    layers[layer].output[:, i] = value[:, i]
                    found.append(wrapped.lm_head.output)
        return patches.metric(found[0])

    return lambda which: torch.cat([one(*patches.cells[i]) for i in which])


DIRECTLY: dict[str, Callable[[Map], Way]] = {
    "hooks": hooks_directly,
    "transformer_lens": transformer_lens_directly,
    "nnsight": nnsight_directly,
}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds an edit of both maps, in every way.

    Args:
        job: model (of the family llama), backends, sample (edits of a loop in each round), rounds, repeat.

    Returns:
        maps: for each its local, layers, inner (positions or heads), samples, and differences: way -> the largest from
        the first loop, over the sampled edits.

    Raises:
        turns.WaysDifferError: the ways do not give the same numbers.
    """
    model, tokenizer = load_model(job["model"])
    return {"maps": [_map(Map(model, tokenizer, local), job) for local in LOCALS]}


def _map(patches: Map, job: dict[str, Any]) -> dict[str, Any]:
    names, whole = job["backends"], list(range(len(patches.cells)))
    drawn = random.Random(job["repeat"])
    some = sorted(drawn.sample(whole, min(job["sample"], len(whole))))
    with ExitStack() as stack:
        lenses = {name: stack.enter_context(load_backend(name)(patches.model)) for name in names}
        ways = {f"sweep, {name}": swept(patches, lens) for name, lens in lenses.items()}
        ways |= {f"loop, {name}": looped(patches, lens) for name, lens in lenses.items()}
        ways |= {f"loop, {name} directly": DIRECTLY[name](patches) for name in names if name in DIRECTLY}
        want = ways[f"loop, {names[0]}"](some)
        differences = {way: float((call(some) - want).abs().max()) for way, call in ways.items()}
        if not max(differences.values()) < _NEAR * float(want.abs().max()):
            raise turns.WaysDifferError(f"{patches.local}: the ways differ by {differences}")

        def timed(way: str) -> turns.Way:
            def call() -> int:
                which = whole if way.startswith("sweep") else drawn.sample(whole, len(some))
                ways[way](which)
                return len(which)

            return call

        samples = turns.in_turns({way: timed(way) for way in ways}, job["rounds"], job["repeat"])
    return {
        "local": patches.local, "layers": patches.layers, "inner": len(whole) // patches.layers,
        "differences": differences, "samples": samples,
    }  # fmt: skip
