"""Timing of one call against another in one process, alternately, so that both see the same machine.

Source of the design: paired, interleaved measurement as in `pyperf` and `asv`; ratios of pairs cancel drift of the
clock speed and of the machine's load that separate blocks would confuse with the effect.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Call = Callable[[], Any]

_LEAST_SECONDS = 0.02  # of one sample: shorter calls are repeated, for the clock and the scheduler not to matter
_MOST_CALLS = 50
_STABLE = 0.05  # relative change between two warm-up calls that counts as stable
_MOST_WARMUPS = 8
_OVERTIME = 4.0  # times the budget after which even too few pairs are enough
_FEWEST = 3


@dataclass(frozen=True)
class Sampling:
    """How many pairs to time.

    Args:
        pairs: no fewer, unless they take more than four times the budget.
        most: no more.
        seconds: budget; beyond it no pair is added.
    """

    pairs: int
    most: int
    seconds: float


@dataclass(frozen=True)
class Pair:
    """One paired sample: seconds a call, and which of the two was timed first."""

    bare_s: float
    step_s: float
    bare_first: bool


@dataclass(frozen=True)
class Timing:
    """Paired samples, the calls that each sample is the mean of, and the warm-up calls before them."""

    pairs: list[Pair]
    calls: int
    warmups: int


def time_pairs(
    step: Call, bare: Call, sampling: Sampling, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> Timing:
    """Time `step` against `bare`, alternately, in an order drawn anew for each pair.

    Garbage collection is off inside a sample and done between pairs.
    """
    order = random.Random(seed)
    warmups = max(_warm_up(bare), _warm_up(step))
    calls = min(_MOST_CALLS, max(1, math.ceil(_LEAST_SECONDS / max(seconds(bare, 1), 1e-6))))
    pairs: list[Pair] = []
    with no_garbage_collection():
        start = time.perf_counter()
        while len(pairs) < sampling.most:
            bare_first = order.random() < 0.5
            first, second = (bare, step) if bare_first else (step, bare)
            one, two = seconds(first, calls), seconds(second, calls)
            bare_s, step_s = (one, two) if bare_first else (two, one)
            pairs.append(Pair(bare_s, step_s, bare_first))
            gc.collect()
            spent = time.perf_counter() - start
            if progress is not None:
                progress(min(len(pairs), sampling.pairs), sampling.pairs)
            if spent > sampling.seconds and len(pairs) >= sampling.pairs:
                break
            if spent > _OVERTIME * sampling.seconds and len(pairs) >= _FEWEST:
                break
    return Timing(pairs, calls, warmups)


def seconds(call: Call, calls: int) -> float:
    """Mean seconds of one call, over `calls` of them."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


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
