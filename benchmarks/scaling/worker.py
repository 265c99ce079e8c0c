"""Measures one backend at every point, in a process of its own: `python -m crosslens.benchmarks.scaling.worker JOB`.

A job: `backend`, `repeat`, `device`, `axes` (name -> values), `samples`, `calls` of the memory's growth (0 for none),
`seconds` and `threads`. Points come in a shuffled order; at each a model is made, opened, timed in blocks of bare,
plain hooks and the backend, and closed.
"""

from __future__ import annotations

import gc
import random
import time
from dataclasses import asdict
from typing import Any

import torch

from crosslens.adapters import CrosslensError, Inspector, load_backend
from crosslens.benchmarks.environment import library_version
from crosslens.benchmarks.fresh import answer
from crosslens.benchmarks.memory import resident
from crosslens.benchmarks.overhead.ways import Cell, Way
from crosslens.benchmarks.overhead.worker import hold_to
from crosslens.benchmarks.timing import Call, no_garbage_collection, seconds

from .axes import AXES, Point, bare, facts, ids_of, model_of, native, recorded, through

EVERY = 5
"""Calls between two readings of the memory."""
SETTLED = 30
"""Calls before the first reading."""
WRAPPED = ("depth", "width")
"""Axes along which wrapping is measured."""
LEAST = 50
"""Calls over which memory is read, however slow they are."""
_OPENINGS = 3
_READING = 30.0  # seconds of calls over which memory is read
_PATIENCE = 2.0  # seconds of samples of one way at one point


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Everything about one backend that one process finds."""
    hold_to(job["threads"])
    kind = load_backend(job["backend"])
    answer: dict[str, Any] = {"version": library_version(kind.library or "torch"), "points": []}
    drawn = random.Random(f"{job['backend']} {job['repeat']}")
    places = [(axis, x) for axis, values in job["axes"].items() for x in values]
    random.Random(0).shuffle(places)  # the same in each process: where time is short, all lack the same points
    at_point(kind, AXES["depth"].points()[2], {}, 1, drawn, job["device"])  # what the first use of a library costs
    start = time.monotonic()
    for axis, x in places:
        if time.monotonic() - start > job["seconds"]:
            answer["cut"] = f"{len(answer['points'])} of {len(places)} points in {job['seconds']:g} s"
            break
        point = AXES[axis].points()[x]
        answer["points"].append(at_point(kind, point, {"axis": axis, "x": x}, job["samples"], drawn, job["device"]))
    if job["calls"]:
        try:
            answer["growth"] = grown(kind, job["calls"], job["device"])
        except CrosslensError as error:
            answer["growth"] = {"reason": str(error)}
    return answer


def at_point(
    kind: type[Inspector], point: Point, place: dict[str, Any], samples: int, drawn: random.Random, device: str
) -> dict[str, Any]:
    """One point: wrapping, and every way's samples."""
    model, ids = model_of(point).to(device), ids_of(point).to(device)
    opened: list[float] = []
    closed: list[float] = []
    try:
        for _ in range(_OPENINGS - 1 if place.get("axis") in WRAPPED else 0):
            lens = _timed(kind, model, opened)
            closed.append(seconds(lens.close, 1))
        lens = _timed(kind, model, opened)
        way = Way(through(lens, point, ids), "right")
    except CrosslensError as error:
        return {**place, "reason": str(error)}
    ways = {"bare": Way(bare(model, ids), "bare"), "native": Way(native(model, point, ids), "right"), "through": way}
    cell = Cell(place, ways, samples, cuda=device != "cpu", patience=_PATIENCE)
    cell.judge()
    with no_garbage_collection():
        for _ in range(samples):
            cell.sample(drawn)
    cell.finish()
    closed.append(seconds(lens.close, 1))
    wrapping = {"open_s": [round(s, 7) for s in opened], "close_s": [round(s, 7) for s in closed]}
    return {**cell.kept(), **wrapping, **facts(model), "point": asdict(point)}


def _timed(kind: type[Inspector], model: Any, opened: list[float]) -> Inspector:
    """An inspector, and the seconds that it took."""
    start = time.perf_counter()
    lens = kind(model)
    opened.append(time.perf_counter() - start)
    return lens


def grown(kind: type[Inspector], calls: int, device: str) -> dict[str, Any]:
    """Memory read every few calls of recording every block's residual stream."""
    point = Point()
    model, ids = model_of(point).to(device), ids_of(point).to(device)
    with kind(model) as lens:
        names = recorded(point)
        return readings(lambda: lens.run(ids, capture=names), calls)


def readings(call: Call, calls: int) -> dict[str, Any]:
    """Bytes resident, on the device and objects of Python's, every `EVERY` calls, after `SETTLED` of them.

    Of slow calls there are fewer; `calls` says how many there were.
    """
    for _ in range(SETTLED):
        call()
    start = time.monotonic()
    gc.collect()
    gc.freeze()  # only what comes from now on is looked through
    out: dict[str, Any] = {"calls": 0, "every": EVERY, "bytes": [], "objects": [], "device_bytes": []}
    try:
        for _ in range(EVERY):  # until what every call leaves behind is counted as well
            call()
        for done in range(calls + 1):
            if done % EVERY == 0:
                out["calls"] = done
                gc.collect()
                out["bytes"].append(resident())
                out["objects"].append(len(gc.get_objects()))
                if torch.cuda.is_available():
                    out["device_bytes"].append(torch.cuda.memory_allocated())
                if done >= LEAST and time.monotonic() - start > _READING:
                    break
            if done < calls:
                call()
    finally:
        gc.unfreeze()
    return out


if __name__ == "__main__":
    answer(measure)
