"""Timing of calls against one another in one process, in blocks, so that all see the same machine.

Source of the design: randomised, interleaved measurement as in `pyperf` and `asv`; ratios within a block cancel drift
of the clock speed and of the machine's load that separate series would confuse with the effect.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]

_LEAST_SECONDS = 0.02  # of one sample: shorter calls are repeated, for the clock and the scheduler not to matter
_MOST_CALLS = 50
_STABLE = 0.05  # relative change between two warm-up calls that counts as stable
_MOST_WARMUPS = 8
_OVERTIME = 4.0  # times the budget after which even too few blocks are enough
_FEWEST = 3


@dataclass(frozen=True)
class Sampling:
    """How many blocks to time.

    Args:
        pairs: blocks, no fewer, unless they take more than four times the budget.
        most: no more.
        seconds: budget; beyond it no block is added.
    """

    pairs: int
    most: int
    seconds: float


@dataclass(frozen=True)
class Timing:
    """Blocks, the calls that each sample is the mean of, and the warm-up calls before them.

    Attributes:
        blocks: name -> seconds a call, in the order in which they were timed, which is drawn anew for each block.
    """

    blocks: list[dict[str, float]]
    calls: int
    warmups: int


def time_blocks(
    calls: Mapping[str, Call],
    sampling: Sampling,
    *,
    seed: int | str,
    progress: Callable[[int, int], None] | None = None,
) -> Timing:
    """Time every call once in each block, in an order drawn anew for each.

    The first of `calls` says how often a sample repeats them all. Garbage collection is off inside a sample and done
    between blocks.
    """
    draw = random.Random(seed)
    warmups = max(_warm_up(call) for call in calls.values())
    often = min(_MOST_CALLS, max(1, math.ceil(_LEAST_SECONDS / max(seconds(next(iter(calls.values())), 1), 1e-6))))
    blocks: list[dict[str, float]] = []
    with no_garbage_collection():
        start = time.perf_counter()
        while len(blocks) < sampling.most:
            order = draw.sample(list(calls), len(calls))
            blocks.append({name: seconds(calls[name], often) for name in order})
            gc.collect()
            spent = time.perf_counter() - start
            if progress is not None:
                progress(min(len(blocks), sampling.pairs), sampling.pairs)
            if spent > sampling.seconds and len(blocks) >= sampling.pairs:
                break
            if spent > _OVERTIME * sampling.seconds and len(blocks) >= _FEWEST:
                break
    return Timing(blocks, often, warmups)


def seconds(call: Call, calls: int) -> float:
    """Mean seconds of one call, over `calls` of them; what they started on a GPU has ended by then."""
    stop = stopwatch()
    for _ in range(calls):
        call()
    return stop() / calls


def stopwatch() -> Callable[[], float]:
    """Starts to run; what it returns stops it, and gives seconds.

    Where this process uses a GPU, whose work goes on after the call that started it has returned, the time is that
    between two events in its queue, the first when it has nothing to do, the second behind all that was asked of it.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        start = time.perf_counter()
        return lambda: time.perf_counter() - start
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()

    def stop() -> float:
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return stop


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """No collection inside; what lives already is left out of those that the caller asks for, to keep them short."""
    gc.collect()
    gc.freeze()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        gc.unfreeze()


def _warm_up(call: Call) -> int:
    """Call until two calls in a row take the same time, or a few times; returns how often."""
    before = seconds(call, 1)
    for done in range(2, _MOST_WARMUPS + 1):
        now = seconds(call, 1)
        if abs(now - before) <= _STABLE * before:
            return done
        before = now
    return _MOST_WARMUPS
