"""Clocks: every block holds every call once, in an order drawn anew; budgets end the sampling."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from crosslens.benchmarks import timing
from crosslens.benchmarks.timing import Sampling, Timing, time_blocks


def pausing(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def timed(call: Callable[[], None], sampling: Sampling) -> Timing:
    return time_blocks({"bare": call, "step": call}, sampling, seed=0)


def test_blocks_hold_every_call_once_in_a_drawn_order_without_garbage_collection() -> None:
    calls: list[str] = []
    pauses = {"bare": 0.025, "hooks": 0.03, "step": 0.05}

    def call(name: str) -> Callable[[], None]:
        def body() -> None:
            calls.append(name)
            assert not (len(calls) > 3 * timing._MOST_WARMUPS + 1 and gc.isenabled())
            time.sleep(pauses[name])

        return body

    found = time_blocks({name: call(name) for name in pauses}, Sampling(12, 12, 60.0), seed=0)
    assert gc.isenabled()
    assert (found.calls, len(found.blocks)) == (1, 12)
    sequence = [tuple(calls[i : i + 3]) for i in range(len(calls) - 36, len(calls), 3)]
    assert sequence == [tuple(block) for block in found.blocks], "the order that is kept is the order of the calls"
    assert all(set(order) == set(pauses) for order in sequence)
    assert len(set(sequence)) > 3, "the order is drawn for each block"
    assert 1.5 < np.median([block["step"] / block["bare"] for block in found.blocks]) < 2.5
    assert 1.05 < np.median([block["hooks"] / block["bare"] for block in found.blocks]) < 1.5


def test_the_order_is_that_of_the_seed() -> None:
    calls = {"bare": pausing(0.0), "hooks": pausing(0.0), "step": pausing(0.0)}
    orders = [[list(block) for block in time_blocks(calls, Sampling(9, 9, 9.0), seed=s).blocks] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_short_calls_are_repeated_and_budgets_end_the_sampling() -> None:
    quick = timed(lambda: None, Sampling(3, 5, 60.0))
    assert (quick.calls, len(quick.blocks)) == (50, 5), "no more than `most`"
    slow = timed(pausing(0.03), Sampling(3, 500, 0.2))
    assert 3 <= len(slow.blocks) < 20, "none is added beyond the budget"
    slower = timed(pausing(0.03), Sampling(500, 500, 0.05))
    assert 3 <= len(slower.blocks) < 20, "far beyond the budget, too few are enough"


def test_garbage_collection_comes_back_after_an_exception() -> None:
    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        timed(fail, Sampling(3, 3, 1.0))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_work_on_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            events.append("event")

        def elapsed_time(self, other: Event) -> float:
            assert other is not self
            return 5000.0  # milliseconds

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: events.append("wait"))
    monkeypatch.setattr("torch.cuda.Event", Event)
    assert timing.seconds(lambda: events.append("call"), 2) == 2.5
    assert events == ["wait", "event", "call", "call", "event", "wait"], "it is idle when the first is taken"
