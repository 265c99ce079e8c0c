"""Ways of doing the same, timed in turns.

CPU time, to which what else runs on the machine adds less than to the time on a clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from crosslens.benchmarks.timing import no_garbage_collection

Way = Callable[[], int]
"""Does the work; returns how many units of it that were."""
Samples = dict[str, list[float]]
"""Way -> CPU seconds a unit, one for each round."""


def in_turns(ways: Mapping[str, Way], rounds: int, seed: int | str) -> Samples:
    """CPU seconds a unit of each way, once a round, in an order drawn anew for each."""
    order, drawn = list(ways), random.Random(seed)
    samples: Samples = {way: [] for way in ways}
    with no_garbage_collection():
        for _ in range(rounds):
            drawn.shuffle(order)
            for way in order:
                start = time.process_time()
                units = ways[way]()
                samples[way].append(float(f"{(time.process_time() - start) / units:.6g}"))
    return samples


def calls(call: Callable[[], Any], times: int = 1) -> Way:
    """A way that calls so many times; its unit is a call."""

    def way() -> int:
        for _ in range(times):
            call()
        return times

    return way


class WaysDifferError(RuntimeError):
    """What is to be timed does not do the same work: nothing is."""
