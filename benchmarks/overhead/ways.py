"""One operation in every way, in one process: what each gives is judged, then all are timed in interleaved blocks."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters import CrosslensError, Inspector, UnsupportedError
from crosslens.benchmarks.timing import Call, stopwatch

from .idiomatic import direct_call, native_call
from .operations import OPERATIONS, Work

TOLERANCE = 1e-4
"""Of a result: largest difference from plain hooks', as a part of its largest value. Float32 rounding is below 1e-5."""
LEAST_EFFECT = 10 * TOLERANCE
"""That an edit must have on what it changes, by the same measure: else one that does nothing would be right."""
PATIENCE = 6.0
"""Seconds of samples after which a way has no more of them, unless told."""
LIMIT = 20.0
"""Seconds after which a call is broken off, where the system can; it then has no time."""


class TooLong(BaseException):
    """A call took longer than its limit; no `except Exception` of a library's keeps it."""


@contextmanager
def broken_off(limit: float) -> Iterator[None]:
    """Raise TooLong inside after `limit` seconds; only in the main thread, and not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Way:
    """One way of doing an operation.

    Args:
        call: does it; None where `status` says why not.
        status: `right`, `wrong`, `unsupported`, `impossible`, `no program`, `slow`, `vacuous`, `failed`; or `bare`.
        reason: why, where it is not right.
        result: of the last call.
        first_s: of the first call.
        device_bytes: that a call allocates on the device at its peak; None on the CPU.
        seconds: of one call, each sample.
    """

    call: Call | None
    status: str
    reason: str = ""
    result: Any = None
    first_s: float = 0.0
    device_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)

    def end(self, status: str, reason: str) -> None:
        """No more of this way; it has no time."""
        self.call, self.status, self.reason, self.result, self.seconds = None, status, reason, None, []

    def kept(self) -> dict[str, Any]:
        """As JSON; figures to a tenth of a microsecond."""
        if self.status not in ("right", "bare"):
            return {"status": self.status, "reason": self.reason}
        out = {"status": self.status, "first_s": round(self.first_s, 7), "s": [round(s, 7) for s in self.seconds]}
        return out if self.device_bytes is None else {**out, "device_bytes": self.device_bytes}


class Cell:
    """Ways of getting one result, `bare` and `native` among them.

    Args:
        place: what the cell is of, as JSON.
        ways: name -> way; all are held to what `native` gives.
        samples: wanted of each.
        parameters: whatever a call may leave with a gradient.
        cuda: whether to read the memory of the device.
        patience: seconds of samples after which a way has no more of them; but it has two, or one very slow one.
        watch: a watch that runs from now on; what it returns stops it, and gives seconds.
    """

    def __init__(
        self, place: Mapping[str, Any], ways: dict[str, Way], samples: int,
        parameters: Sequence[nn.Parameter] = (), *, cuda: bool = False, patience: float = PATIENCE,
        watch: Callable[[], Callable[[], float]] = stopwatch,
    ) -> None:  # fmt: skip
        self.place, self.ways, self.samples = dict(place), ways, samples
        self._parameters, self._cuda, self._patience, self._watch = parameters, cuda, patience, watch

    def judge(self) -> None:
        """Hold what every way gives to what plain hooks give; must go before `sample`.

        What is captured is captured twice, to see that the second does not change the first.
        Where an edit does nothing that could be seen, no way has a time.
        """
        for way in self.ways.values():
            self._first(way)
        want, bare = self.ways["native"].result, self.ways["bare"].result
        if isinstance(want, Tensor) and want.shape == bare.shape and want.numel():
            effect = difference(bare, want)
            if not effect >= LEAST_EFFECT:
                for way in self.ways.values():
                    way.end("vacuous", f"the edit changes the result by {effect:.2g} of it: too little to judge by")
        self._hold()

    def sample(self, drawn: random.Random) -> None:
        """One sample of each way, in an order drawn anew; a slow way is left out when it has had its time."""
        names = [name for name, way in self.ways.items() if way.call is not None and self._wanted(way)]
        if names == ["bare"] or not names:
            return
        drawn.shuffle(names)
        for name in names:
            way = self.ways[name]
            assert way.call is not None
            stop = self._watch()
            way.result = way.call()
            way.seconds.append(stop())
            self._forget_gradients()

    def finish(self) -> None:
        """Judge what the last timed calls gave, and let go of it."""
        self._hold()
        for way in self.ways.values():
            way.result = None

    def kept(self) -> dict[str, Any]:
        """As JSON."""
        ways = {name: way.kept() for name, way in self.ways.items()}
        return {**self.place, "ways": ways}

    def _wanted(self, way: Way) -> bool:
        taken = way.seconds
        if not taken or len(taken) >= self.samples:
            return not taken
        again = sum(taken) + taken[-1] <= self._patience
        return again or (len(taken) == 1 and taken[-1] < PATIENCE / 2)

    def _first(self, way: Way) -> None:
        if way.call is None:
            return
        try:
            with broken_off(LIMIT):
                stop = self._watch()
                first = way.result = way.call()
                way.first_s = stop()
            if not self._cuda and not isinstance(first, list):
                return
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            with broken_off(LIMIT):
                way.result = way.call()
                if self._cuda:
                    torch.cuda.synchronize()
            if self._cuda:
                way.device_bytes = torch.cuda.max_memory_allocated() - before
            if shared := _shared(first, way.result):
                way.end("wrong", f"{shared} of its tensors share memory with another")
        except TooLong:
            way.end("slow", f"one call took more than {LIMIT:.0f} s and was broken off")
        except Exception as error:  # whatever a library raises is a result
            way.end(*_why(error))
        finally:
            self._forget_gradients()

    def _hold(self) -> None:
        want = self.ways["native"].result
        for name, way in self.ways.items():
            judged = name not in ("bare", "native") and way.call is not None
            if judged and (fault := unlike(way.result, want)):
                way.end("wrong", fault)

    def _forget_gradients(self) -> None:
        """Some libraries' programs leave gradients on the parameters; a second call would add to them."""
        for parameter in self._parameters:
            parameter.grad = None


def cell_of(
    shape: str, operation: str, work: Work, samples: int, lenses: Mapping[str, Inspector], backend: str,
    stack: ExitStack,
) -> Cell:  # fmt: skip
    """The cell of one operation on one shape.

    Args:
        lenses: name of a way -> its inspector.
        backend: whose library is used directly as well.
        stack: closes what the direct ways leave open.
    """
    bare = Way(OPERATIONS[operation].bare(work), "bare")
    ways = {"bare": bare, "native": Way(native_call(operation, work), "right")}
    ways |= {name: _through(lens, operation, work) for name, lens in lenses.items()}
    ways["directly"] = _directly(backend, operation, work, stack)
    place = {"shape": shape, "operation": operation}
    return Cell(place, ways, samples, work.parameters, cuda=work.ids.is_cuda)


def unlike(got: Any, want: Any) -> str:
    """How a result differs from what it must be; empty where it does not."""
    ours, theirs = _tensors(got), _tensors(want)
    if len(ours) != len(theirs):
        return f"{len(ours)} tensors, must be {len(theirs)}"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(a, Tensor) or a.numel() != b.numel() or a.shape[: b.ndim - 1] != b.shape[:-1]:
            return f"tensor {i}: {tuple(getattr(a, 'shape', ()))}, must be {tuple(b.shape)}"
        if b.is_floating_point():
            error = difference(a.reshape(b.shape), b)
            if not error <= TOLERANCE:  # a NaN is no right answer
                return f"tensor {i} is off by {error:.2g} of its largest value"
        elif not torch.equal(a.reshape(b.shape), b):
            return f"tensor {i}: {int((a.reshape(b.shape) != b).sum())} wrong tokens"
    return ""


def difference(got: Tensor, want: Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


def _tensors(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


def _shared(first: Any, second: Any) -> int:
    """How many captured tensors have memory that another has; a lone result is not captured."""
    if not isinstance(second, list):
        return 0
    memory = [each.data_ptr() for each in (*_tensors(first), *second) if isinstance(each, Tensor)]
    return len(memory) - len(set(memory))


def _through(lens: Inspector, operation: str, work: Work) -> Way:
    states = lens.capabilities
    for need in OPERATIONS[operation].needs:
        if not states[need]:
            return Way(None, "unsupported", states[need].reason)
    try:
        return Way(OPERATIONS[operation].through(lens, work), "right")
    except CrosslensError as error:
        return Way(None, *_why(error))


def _directly(backend: str, operation: str, work: Work, stack: ExitStack) -> Way:
    if work.ids.is_cuda:
        return Way(None, "impossible", "the programs are for the CPU")
    try:
        found = direct_call(backend, operation, work, stack)
    except Exception as error:
        return Way(None, *_why(error))
    if isinstance(found, str):
        return Way(None, "impossible" if found else "no program", found)
    return Way(found, "right")


def _why(error: Exception) -> tuple[str, str]:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return "unsupported" if isinstance(error, UnsupportedError) else "failed", text[:300]
