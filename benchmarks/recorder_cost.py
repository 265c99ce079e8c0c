"""What recording a training step costs: the bare step, the `Recorder`, and comgra's own recorder, on the same tensors.

python -m crosslens.benchmarks.recorder_cost

Both record the outputs of all layers, their gradients, all parameters and theirs, with comgra's key figures, without
singular values, in every step. comgra is called as its documentation teaches, in `kpis` mode without single samples.
That both give the same figures is asserted before anything is timed.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgpack
import numpy as np
import torch
import typer
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from comgra.utilities import PseudoDb
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from crosslens.tasks import Recorder, Recording
from crosslens.tasks.recording_figures import BATCH

from .estimate import median_ratio
from .timing import no_garbage_collection

Figures = dict[tuple[Any, ...], float]
"""(step, kind, site, key figure) -> value."""
STEPS = 256  # of one block of the Recorder: as many as go into a part, so that a block pays for writing one
_OF_COMGRA = 24
_FIGURES = ("mean", "abs_mean", "sd", "abs_max", *BATCH)


class Residual(nn.Module):
    """An MLP with four residual blocks, 64 to 256 units."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 256)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(4))
        self.leave = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) -> (batch, 10)."""
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.leave(x)
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, 64 units, 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pos, 64) -> the same."""
        h = self.norm1(x)
        q, k, v = (each(h).unflatten(-1, (4, 16)).transpose(1, 2) for each in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Two blocks between an embedding and an unembedding of 100 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.unembed = nn.LayerNorm(64), nn.Linear(64, 100)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, pos) -> (batch, 100): logits at the last position."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.unembed(self.norm(x))[:, -1]
        return out


@dataclass
class Loop:
    """One model with its optimiser and inputs; its state goes on from block to block."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    @property
    def layers(self) -> list[str]:
        """Modules that hold no other."""
        return [name for name, module in self.model.named_modules() if not list(module.children())]

    def loss(self) -> Tensor:
        """The forward."""
        self.optimizer.zero_grad()
        return nn.functional.cross_entropy(self.model(self.inputs), self.targets)


def residual() -> Loop:
    """Of the MLP, batch 32."""
    return Loop(Residual(), torch.randn(32, 64), torch.randint(0, 10, (32,)))


def transformer() -> Loop:
    """Of the transformer, batch 8, 32 positions."""
    return Loop(Transformer(), torch.randint(0, 100, (8, 32)), torch.randint(0, 100, (8,)))


def bare(loop: Loop, steps: int) -> None:
    """The steps alone."""
    for _ in range(steps):
        loop.loss().backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()


@contextmanager
def ours(loop: Loop, out: Path, **options: Any) -> Iterator[Callable[[int], None]]:
    """Steps inside a `Recorder`."""
    sites = [f"module:{name}:output" for name in loop.layers]
    with Recorder(loop.model, sites, out=out, flush_every=STEPS, **options) as recorder:

        def run(steps: int) -> None:
            for _ in range(steps):
                with recorder.step("train") as step:
                    loss = loop.loss()
                    step.loss("loss", loss)
                    loss.backward()  # type: ignore[no-untyped-call]
                    step.gradients("loss")
                    loop.optimizer.step()

        yield run


@contextmanager
def theirs(loop: Loop, out: Path) -> Iterator[Callable[[int], None]]:
    """Steps inside comgra's recorder."""
    recorder = ComgraRecorder(
        out, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1),
        calculate_svd_and_other_expensive_operations_of_parameters=False,
    )  # fmt: skip
    recorder.track_module("net", loop.model)
    handles = [
        loop.model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: recorder.register_tensor(name, out, recording_type="kpis")
        )
        for name in loop.layers
    ]
    number = 0

    def run(steps: int) -> None:
        nonlocal number
        for _ in range(steps):
            recorder.start_batch(number, len(loop.inputs), "train", record_all_tensors_per_batch_index_by_default=False)
            recorder.start_iteration()
            loss = loop.loss()
            recorder.register_tensor("loss", loss, is_loss=True)
            loss.backward()  # type: ignore[no-untyped-call]
            recorder.record_current_gradients("loss")
            loop.optimizer.step()
            recorder.finish_iteration()
            recorder.finish_batch()
            number += 1

    yield run
    recorder.finalize()
    for handle in handles:
        handle.remove()


def main(rounds: Annotated[int, typer.Option(help="Rounds; each runs every way once.")] = 5) -> None:
    """Measure, and print."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning, module="comgra")
    table = Table(title=f"CPU time of a training step, one thread, {rounds} rounds, medians [95 %]")
    for column in ("model", "way", "ms a step", "times the bare step", "overhead, ms", "bytes a step"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for name, make in (("residual MLP, batch 32", residual), ("transformer, 8 x 32", transformer)):
        _check(make)
        _measure(name, make, rounds, table)
    Console(width=130).print(table)


def _measure(name: str, make: Callable[[], Loop], rounds: int, table: Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for each in ("same", "default", "never", "comgra"):
            (root / each).mkdir()
        with (
            ours(make(), root / "same", kpis=_FIGURES) as same, ours(make(), root / "default") as default,
            ours(make(), root / "never", schedule=lambda step, category: False) as never,
            theirs(make(), root / "comgra") as comgra,
        ):  # fmt: skip
            loop = make()
            ways: dict[str, tuple[Callable[[int], None], int]] = {
                "bare": (lambda steps: bare(loop, steps), STEPS), "Recorder, not due": (never, STEPS),
                "Recorder, comgra's figures": (same, STEPS), "Recorder, default": (default, STEPS),
                "comgra, kpis": (comgra, _OF_COMGRA),
            }  # fmt: skip
            for run, _ in ways.values():
                run(3)
            samples = _samples(ways, rounds)
        steps = {way: 3 + rounds * count for way, (_, count) in ways.items()}
        folders = dict(zip(list(ways)[2:], ("same", "default", "comgra"), strict=True))
        sizes = {way: _bytes(root / folder) / steps[way] for way, folder in folders.items()}
    for way, values in samples.items():
        ratio = median_ratio([values / samples["bare"]])
        table.add_row(
            name, way, f"{1e3 * np.median(values):.2f}", f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            "" if way == "bare" else f"{1e3 * np.median(values - samples['bare']):.3f}",
            f"{sizes[way]:,.0f}" if way in sizes else "",
        )  # fmt: skip
        name = ""


def _samples(ways: dict[str, tuple[Callable[[int], None], int]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """CPU seconds a step, (rounds,) for each way, in an order drawn anew each round."""
    order, drawn = list(ways), random.Random(0)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    with no_garbage_collection():
        for _ in range(rounds):
            drawn.shuffle(order)
            for way in order:
                run, steps = ways[way]
                start = time.process_time()
                run(steps)
                samples[way].append((time.process_time() - start) / steps)
    return {way: np.array(values) for way, values in samples.items()}


def _check(make: Callable[[], Loop]) -> None:
    """Both record the same figures of the same tensors, and neither changes the training."""
    found, losses = [], []
    for way in ("ours", "theirs", "bare"):
        torch.manual_seed(0)
        loop = make()
        with tempfile.TemporaryDirectory() as folder:
            if way == "ours":
                with ours(loop, Path(folder) / "new", kpis=_FIGURES) as run:
                    run(2)
                found.append(_of_ours(Path(folder) / "new"))
            elif way == "theirs":
                with theirs(loop, Path(folder)) as run:
                    run(2)
                found.append(_of_comgra(Path(folder), loop.model))
            else:
                bare(loop, 2)
        losses.append(torch.cat([p.detach().flatten() for p in loop.model.parameters()]))
    assert all(torch.equal(each, losses[2]) for each in losses[:2]), "a recorder changed the training"
    mine, other = found
    assert mine.keys() == other.keys(), f"not the same tensors: {sorted(mine.keys() ^ other.keys())[:4]}"
    values = np.array([[mine[key], other[key]] for key in mine])
    assert len(values) > 100
    np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=2e-4, atol=1e-6)


def _of_ours(folder: Path) -> Figures:
    table = Recording.load(folder).table(["activation", "gradient", "parameter"])
    # comgra's figures over a batch, and of a parameter as a whole
    table = table[table["site"].str.startswith("parameter:") ^ table["kpi"].isin(BATCH)]
    keys = zip(table["step"], table["kind"], table["site"], table["kpi"], strict=True)
    return dict(zip(keys, table["value"].astype(float), strict=True))


def _of_comgra(folder: Path, model: nn.Module) -> Figures:
    """Every number in comgra's files; it has no reader of its own."""
    found: Figures = {}
    sizes = {f"parameter:{name}": parameter.numel() for name, parameter in model.named_parameters()}
    for path in folder.rglob("*.msgpack"):
        if path.parent.parent.name != "recordings":  # the curves
            continue
        content = msgpack.loads(path.read_bytes(), strict_map_key=False)
        for key, held in PseudoDb([]).deserialize(content["recordings"]).record_set.items():
            step, kind, aggregate, _, node, _, record, kpi, _ = key
            site = node.removeprefix("node__")
            if record != "data" or site == "loss" or "val" not in held:  # where it refers to another
                continue
            whole = aggregate == "has_no_batch_dimension"
            kind = "gradient" if kind != "forward" else "parameter" if whole else "activation"
            name = site.replace("net.", "parameter:", 1) if whole else f"module:{site}:output"
            if whole and kpi == "std":  # its divisor is n - 1
                found[step, kind, name, "sd"] = held["val"] * (1 - 1 / sizes[name]) ** 0.5
            else:
                found[step, kind, name, kpi if whole else f"{kpi}/{aggregate}"] = held["val"]
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    typer.run(main)
