"""What a patching map costs: as a sweep, as a forward an edit, and as each library's own loop.

python -m crosslens.benchmarks.sweep_cost

The map is that of the task `ioi`: what the clean prompt has in every block's residual stream at every position, and in
every head, put into the corrupted one. A sweep is timed whole; a loop is timed over edits drawn at random, as many in
each round, since it costs as much for each. That all ways give the same numbers is asserted, and their largest
difference is printed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from crosslens.adapters import Edit, Inspector, load_backend, replace
from crosslens.adapters.shadow import Shadow
from crosslens.tasks import load_model, load_task, sweep

from .environment import threads
from .estimate import median_ratio
from .timing import no_garbage_collection

Way = Callable[[list[int]], Tensor]
"""Numbers of edits -> the metric under each, (edits,)."""
BACKENDS = ("hooks", "nnsight", "pyvene", "transformer_lens")


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


def main(
    model: Annotated[str, typer.Option(help="A language model of the llama family.")] = "smollm2-135m",
    backend: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every way once.")] = 3,
    sample: Annotated[int, typer.Option(min=1, help="Edits of a loop in each round.")] = 12,
) -> None:
    """Measure, and print."""
    torch.set_num_threads(threads())
    network, tokenizer = load_model(model)
    table = Table(title=f"patching maps of {model}, {threads()} threads, {rounds} rounds of CPU time, medians [95 %]")
    for column in ("map", "way", "ms an edit", "times faster than the fastest loop", "largest difference"):
        table.add_column(column, justify="left" if column in ("map", "way") else "right")
    for local in ("resid_post", "attn.z"):
        _measure(Map(network, tokenizer, local), list(backend or BACKENDS), rounds, sample, table)
    Console(width=130).print(table)


def _measure(patches: Map, names: list[str], rounds: int, sample: int, table: Table) -> None:
    whole = list(range(len(patches.cells)))
    lenses = {name: load_backend(name)(patches.model) for name in names}
    ways = {f"sweep, {name}": swept(patches, lens) for name, lens in lenses.items()}
    ways |= {f"loop, {name}": looped(patches, lens) for name, lens in lenses.items()}
    ways |= {f"loop, {name} directly": DIRECTLY[name](patches) for name in names if name in DIRECTLY}
    drawn = random.Random(0)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    some = sorted(drawn.sample(whole, min(sample, len(whole))))
    want = ways[f"loop, {names[0]}"](some)
    differences = {way: float((call(some) - want).abs().max()) for way, call in ways.items()}
    scale = float(want.abs().max())
    assert max(differences.values()) < 1e-3 * scale, f"the ways differ: {differences}"
    with no_garbage_collection():
        for _ in track(range(rounds), description=patches.local, console=Console(stderr=True)):
            order = list(ways)
            drawn.shuffle(order)
            for way in order:
                which = whole if way.startswith("sweep") else drawn.sample(whole, len(some))
                start = time.process_time()
                ways[way](which)
                samples[way].append((time.process_time() - start) / len(which))
    for lens in lenses.values():
        lens.close()
    taken: dict[str, NDArray[np.float64]] = {way: np.array(values) for way, values in samples.items()}
    best = min((way for way in taken if way.startswith("loop")), key=lambda way: float(np.median(taken[way])))
    label = f"{patches.local}, {len(whole)} edits"
    for way, values in sorted(taken.items(), key=lambda item: float(np.median(item[1]))):
        ratio = median_ratio([taken[best] / values])
        faster = f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]"
        table.add_row(label, way, f"{1e3 * np.median(values):.1f}", faster, f"{differences[way]:.1e}")
        label = ""


if __name__ == "__main__":
    typer.run(main)
