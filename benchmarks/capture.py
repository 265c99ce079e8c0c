"""What it costs to record every residual stream: each backend, and each library used directly for the same work.

    python -m crosslens.benchmarks.capture --model smollm2-135m --shape 1x16 --shape 8x64 --out capture.json
    python -m crosslens.benchmarks.capture --show capture.json

All calls of a round are made once, in an order drawn anew; figures are ratios within a round. Each call runs the same
forward on the same token ids without gradients and ends with one owned copy of `resid_post` for each block; that is
asserted before anything is timed, and again after it. On a machine that others use too, `--clock cpu` counts the
processor's time, in which waiting for them has no part. Backends that slow the whole process while they are open have
rounds of their own, with a bare forward beside them. The process is held to as many cores as it may have threads, since
not every library asks PyTorch how many to use.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from crosslens.adapters import BackendNotInstalledError, CrosslensError, UnsupportedError, backends, load_backend
from crosslens.tasks import load_model

from .direct import DIRECTLY, Capture, hooks_directly
from .environment import environment
from .estimate import median_ratio
from .timing import Call, no_garbage_collection

Samples = dict[str, NDArray[np.float64]]
"""Seconds a call, (rounds,) for each way: `bare`, `bare again`, `NAME`, `NAME directly`."""

Clock = Literal["wall", "cpu"]

_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # the latter counts all threads of the process
_ALONE = ("torchlens",)
"""Backends that change PyTorch's functions for all that runs in the process."""

_WARM_UP = 3
_LEAST_SECONDS = 0.02  # of one sample: shorter calls are repeated
_LARGEST_ERROR = 1e-3  # relative to a tensor's largest value; float32 through another library's kernels gives 1e-5


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


def measure(model: Any, ids: Tensor, names: list[str], rounds: int, clock: Clock = "wall", seed: int = 0) -> Samples:
    """Time all ways in `rounds` rounds.

    Args:
        model: a causal language model of a known family.
        ids: (batch, pos) token ids.
        names: backends.
        clock: what is counted, time that passes or the processor's.
        seed: of the order within each round.

    Raises:
        AssertionError: a way that does not give every block's residual stream, in memory of its own.
    """
    before = hooks(model)
    with hooks_directly(model, ids) as reference:
        want = reference()
    with ExitStack() as stack:
        ways: dict[str, Capture] = {w: stack.enter_context(bare(model, ids)) for w in ("bare", "bare again")}
        for name in names:
            ways[name] = stack.enter_context(through_inspector(name, model, ids))
            if name in DIRECTLY:
                ways[f"{name} directly"] = stack.enter_context(DIRECTLY[name](model, ids))
        for way, call in ways.items():
            for _ in range(_WARM_UP):
                call()
            assert_right(way, call, want)
        assert hooks(model) == before, "a way left hooks on the model, which the bare forward would run too"
        order, drawn = list(ways), random.Random(seed)
        samples: dict[str, list[float]] = {way: [] for way in ways}
        calls = {way: max(1, round(_LEAST_SECONDS / seconds(call, 1, clock))) for way, call in ways.items()}
        with no_garbage_collection():
            for _ in track(range(rounds), description="rounds", console=Console(stderr=True)):
                drawn.shuffle(order)
                for way in order:
                    samples[way].append(seconds(ways[way], calls[way], clock))
        for way, call in ways.items():
            assert_right(way, call, want)
        return {way: np.array(values) for way, values in samples.items()}


def seconds(call: Call, calls: int, clock: Clock) -> float:
    """Mean seconds of one call, over `calls` of them."""
    now = _CLOCKS[clock]
    start = now()
    for _ in range(calls):
        call()
    return (now() - start) / calls


def hooks(model: nn.Module) -> int:
    """How many forward hooks and pre-hooks there are on a model's modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def assert_right(way: str, call: Capture, want: list[Tensor]) -> None:
    """Assert that a way gives these tensors, in memory that no other call is given."""
    if way.startswith("bare"):
        return
    got, again = call(), call()
    assert len(got) == len(want), f"{way} gives {len(got)} tensors, must be {len(want)}"
    for layer, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, f"{way}, block {layer}: shape {tuple(a.shape)}, must be {tuple(b.shape)}"
        assert not a.requires_grad, f"{way}, block {layer}: in a graph"
        error = float((a - b).abs().max() / b.abs().max())
        assert error < _LARGEST_ERROR, f"{way}, block {layer}: off by {error:.2g} of the largest value"
    memory = [tensor.data_ptr() for tensor in (*got, *again)]
    assert len(set(memory)) == len(memory), f"{way}: two of its tensors share their memory"


def table(record: Mapping[str, Any]) -> Table:
    """The table of one shape, from what was kept of it."""
    title = "every resid_post of {model}, {batch} x {tokens} tokens, {threads} thread(s), {rounds} rounds, {clock} time"
    out = Table(title=title.format(**record))
    for column in ("way", "ms, median", "ratio to bare [95 %]", "price of the interface [95 %]", "ms over bare"):
        out.add_column(column, justify="left" if column == "way" else "right")
    for group in record["seconds"]:
        found: Samples = {way: np.array(values) for way, values in group.items()}
        bare = found["bare"]
        for way, samples in found.items():
            direct = found.get(f"{way} directly")
            price = "" if direct is None else _shown(samples, direct)
            compared = ("", "") if way == "bare" else (_shown(samples, bare), f"{1e3 * np.median(samples - bare):+.3f}")
            out.add_row(way, f"{1e3 * np.median(samples):.3f}", compared[0], price, compared[1])
        out.add_section()
    return out


def _shown(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> str:
    ratio = median_ratio([numerator / denominator])
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _capturing(names: list[str], model: Any) -> list[str]:
    """Those backends that are installed, capture, and take this model; says why the others are left out."""
    kept = []
    for name in names:
        try:
            backend = load_backend(name)
            if backend.supports()["capture.residual"]:
                backend(model).close()
                kept.append(name)
        except (BackendNotInstalledError, UnsupportedError) as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
    return kept


def _hold_to(threads: int) -> None:
    torch.set_num_threads(threads)
    hold: Callable[..., None] | None = getattr(os, "sched_setaffinity", None)  # Linux
    if hold is not None:
        hold(0, sorted(os.sched_getaffinity(0))[-threads:])


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    if not (batch.isdigit() and tokens.isdigit() and int(batch) and int(tokens)):
        raise typer.BadParameter(f"{text!r}; a shape is batch x tokens, such as 8x64")
    return int(batch), int(tokens)


def main(
    model: Annotated[str, typer.Option(help="Model name, see `crosslens models`.")] = "smollm2-135m",
    shape: Annotated[list[str] | None, typer.Option(help="Batch x tokens; may be given more than once.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Only these; may be given more than once.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each calls every way once.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads, and cores where the system can hold it to them.")] = 1,
    clock: Annotated[Clock, typer.Option(help="Count the time that passes, or the processor's.")] = "wall",
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Keep every sample in this new file.")] = None,
    show: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Print a kept file's tables.")] = None,
) -> None:
    """Time the recording of every block's residual stream, through crosslens and through each library directly."""
    console = Console(width=120)
    if show is not None:
        for each in json.loads(show.read_text(encoding="utf-8"))["shapes"]:
            console.print(table(each))
        return
    shapes = [_shape(text) for text in shape or ["1x16", "8x64"]]
    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} exists; name a new file")
    _hold_to(threads)
    try:
        network, _ = load_model(model)
        names = _capturing(backend or backends(), network)
    except CrosslensError as error:
        raise typer.BadParameter(str(error)) from None
    if not names:
        raise typer.BadParameter(
            "none of these backends records this model's residual stream; see `crosslens backends`"
        )
    libraries = [library for name in names if (library := load_backend(name).library) is not None]
    kept: dict[str, Any] = {"environment": environment(libraries), "shapes": []}
    groups = [[name for name in names if name not in _ALONE], *([name] for name in names if name in _ALONE)]
    for batch, tokens in shapes:
        ids = torch.randint(3, network.config.vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(0))
        record: dict[str, Any] = {"model": model, "batch": batch, "tokens": tokens, "threads": threads}
        record |= {"rounds": rounds, "clock": clock, "seconds": []}
        kept["shapes"].append(record)
        for group in filter(None, groups):
            found = measure(network, ids, group, rounds, clock)
            record["seconds"].append({way: list(samples) for way, samples in found.items()})
            if out is not None:  # after each group: what was measured is not lost with what was not
                part = out.with_name(f"{out.name}.part")
                part.write_text(json.dumps(kept) + "\n", encoding="utf-8")
                part.replace(out)
        console.print(table(record))


if __name__ == "__main__":
    typer.run(main)
