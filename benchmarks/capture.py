"""What it costs to record every residual stream: each backend, and each library used directly for the same work.

    python -m crosslens.benchmarks.capture --model smollm2-135m --shape 1x16 --shape 8x64
    python -m crosslens.benchmarks.capture --model tiny-gpt2 --shape 1x8

All calls of a round are made once, in an order drawn anew; figures are ratios within a round. Each call runs the same
forward on the same token ids under `no_grad` and ends with one owned copy of `resid_post` for each block; that is
asserted before anything is timed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from crosslens.adapters import BackendNotInstalledError, backends, load_backend
from crosslens.tasks import load_model

from .direct import DIRECTLY, Capture
from .estimate import median_ratio
from .timing import no_garbage_collection, seconds


@contextmanager
def through_inspector(name: str, model: Any, ids: Tensor) -> Iterator[Capture]:
    """The same through crosslens."""
    with load_backend(name)(model) as lens:

        def call() -> list[Tensor]:
            return list(lens.run(ids, capture="blocks.*.resid_post").values())

        yield call


@contextmanager
def bare(model: Any, ids: Tensor) -> Iterator[Capture]:
    """The forward alone."""

    def call() -> list[Tensor]:
        with torch.no_grad():
            model(ids, use_cache=False)
        return []

    yield call


def measure(model: Any, ids: Tensor, names: list[str], rounds: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Seconds a call, (rounds,) for each way: `bare`, `bare again`, `NAME`, `NAME directly`.

    Raises:
        AssertionError: a way that does not give every block's residual stream.
    """
    with ExitStack() as stack:
        ways: dict[str, Capture] = {w: stack.enter_context(bare(model, ids)) for w in ("bare", "bare again")}
        for name in names:
            ways[name] = stack.enter_context(through_inspector(name, model, ids))
            if name in DIRECTLY:
                ways[f"{name} directly"] = stack.enter_context(DIRECTLY[name](model, ids))
        _assert_equal_work(ways)
        order, drawn = list(ways), random.Random(seed)
        samples: dict[str, list[float]] = {way: [] for way in ways}
        calls = max(1, round(0.02 / seconds(ways["bare"], 5)))
        with no_garbage_collection():
            for _ in track(range(rounds), description="rounds", console=Console(stderr=True)):
                drawn.shuffle(order)
                for way in order:
                    samples[way].append(seconds(ways[way], calls))
        return {way: np.array(values) for way, values in samples.items()}


def _assert_equal_work(ways: dict[str, Capture]) -> None:
    want = ways["hooks directly"]() if "hooks directly" in ways else None
    for way, call in ways.items():
        for _ in range(3):  # a warm-up too
            got = call()
        if way.startswith("bare") or want is None:
            continue
        assert len(got) == len(want), f"{way} gives {len(got)} tensors, must be {len(want)}"
        for layer, (a, b) in enumerate(zip(got, want, strict=True)):
            error = float((a - b).abs().max() / b.abs().max())
            assert a.shape == b.shape, f"{way}, block {layer}: shape {tuple(a.shape)}, must be {tuple(b.shape)}"
            assert error < 1e-3, f"{way}, block {layer}: off by {error:.2g} of the largest value"


def _shown(numerator: np.ndarray[Any, Any], denominator: np.ndarray[Any, Any]) -> str:
    ratio = median_ratio([numerator / denominator])
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def main(
    model: Annotated[str, typer.Option(help="Model name, see `crosslens models`.")] = "smollm2-135m",
    shape: Annotated[list[str] | None, typer.Option(help="Batch x tokens; may be given more than once.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; each calls every way once.")] = 30,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
) -> None:
    """Time the recording of every block's residual stream, through crosslens and through each library directly."""
    torch.set_num_threads(threads)
    network, _ = load_model(model)
    names = []
    for name in backend or backends():
        try:
            if load_backend(name).supports()["capture.residual"]:
                names.append(name)
        except BackendNotInstalledError as error:
            print(f"skipped: {error}", file=sys.stderr)
    for text in shape or ["1x16", "8x64"]:
        batch, tokens = (int(part) for part in text.split("x"))
        ids = torch.randint(3, network.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
        found = measure(network, ids, names, rounds)
        table = Table(
            title=f"every resid_post of {model}, {batch} x {tokens} tokens, {threads} thread(s), {rounds} rounds"
        )
        for column in ("way", "ms, median", "ratio to bare [95 %]", "price of the interface [95 %]", "ms over bare"):
            table.add_column(column, justify="left" if column == "way" else "right")
        for way, samples in found.items():
            over = 1e3 * float(np.median(samples - found["bare"]))
            direct = found.get(f"{way} directly")
            price = "" if direct is None else _shown(samples, direct)
            ratio = "" if way == "bare" else _shown(samples, found["bare"])
            table.add_row(way, f"{1e3 * np.median(samples):.3f}", ratio, price, "" if way == "bare" else f"{over:+.3f}")
        Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
