"""What was kept of the study, as lines and growth with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crosslens.benchmarks.estimate import Estimate

from .fit import Line, Samples, fit, growth, middle

Points = Sequence[Mapping[int, Samples]]
"""For each process, x -> milliseconds."""


def backends(kept: Mapping[str, Any], device: str = "cpu") -> list[str]:
    """Those that have a point on a device, in order."""
    return list(
        dict.fromkeys(p["job"]["backend"] for p in _processes(kept, device) if any("ways" in c for c in _points(p)))
    )


def overheads(kept: Mapping[str, Any], backend: str, axis: str, way: str = "through", device: str = "cpu") -> Points:
    """Milliseconds over the bare forward, block by block; `bare` itself in milliseconds."""
    found = []
    for process in _processes(kept, device, backend):
        points = {}
        for each in _points(process):
            ways = each.get("ways", {})
            if each["axis"] == axis and ways.get(way, {}).get("s"):
                one, bare = (np.array(ways[name]["s"]) for name in (way, "bare"))
                count = min(len(one), len(bare))
                points[int(each["x"])] = 1e3 * (one if way == "bare" else one[:count] - bare[:count])
        if points:
            found.append(points)
    return found


def line(kept: Mapping[str, Any], backend: str, axis: str, way: str = "through", device: str = "cpu") -> Line | None:
    """Fixed and marginal milliseconds along an axis."""
    return fit(overheads(kept, backend, axis, way, device))


def curve(kept: Mapping[str, Any], backend: str, axis: str) -> dict[int, Estimate]:
    """x -> milliseconds over bare with their interval, where every process has them."""
    processes = overheads(kept, backend, axis)
    shared = set.intersection(*(set(each) for each in processes)) if processes else set()
    return {x: middle([each[x] for each in processes]) for x in sorted(shared)}


def wrapping(kept: Mapping[str, Any], backend: str, axis: str) -> Line | None:
    """Fixed and marginal milliseconds of opening: by block along `depth`, by million parameters along `width`."""
    found = []
    for process in _processes(kept, "cpu", backend):
        points = {}
        for each in _points(process):
            if each["axis"] == axis and "open_s" in each:
                x = each["x"] if axis == "depth" else each["parameters"]
                points[int(x)] = 1e3 * np.array(each["open_s"])
        if points:
            found.append(points)
    made = fit(found)
    if made is None or axis == "depth":
        return made
    million = made.marginal
    return Line(made.fixed, Estimate(*(1e6 * each for each in (million.value, million.low, million.high))))


def closing(kept: Mapping[str, Any], backend: str) -> float | None:
    """Median milliseconds of closing, over all points and processes."""
    found = [s for p in _processes(kept, "cpu", backend) for c in _points(p) for s in c.get("close_s", ())]
    return 1e3 * float(np.median(found)) if found else None


def grown(kept: Mapping[str, Any], backend: str, what: str) -> Estimate | None:
    """Growth by the call of `bytes`, `objects` or `device_bytes`, in the first process that read it."""
    for process in _processes(kept, None, backend):
        found = process["found"].get("growth", {})
        if found.get(what):
            return growth(np.array(found[what]), found["every"])
    return None


def calls_read(kept: Mapping[str, Any], backend: str) -> int:
    """Over how many calls memory was read."""
    every = (process["found"].get("growth", {}) for process in _processes(kept, None, backend))
    return max((int(found.get("calls", 0)) for found in every), default=0)


def faults(kept: Mapping[str, Any]) -> dict[str, list[str]]:
    """What went wrong and is not a time -> where."""
    found: dict[str, list[str]] = {}
    for backend, why in kept["settings"]["left_out"].items():
        found.setdefault(f"{backend}: {why}", [])
    for process in kept["processes"]:
        job, answer = process["job"], process["found"]
        for name in ("error", "cut"):
            if name in answer:
                found.setdefault(f"{job['backend']}: {answer[name]}", []).append(f"process {job['repeat'] + 1}")
        for each in answer.get("points", ()):
            way = each.get("ways", {}).get("through", {})
            reason = each.get("reason") or (way.get("reason") if way.get("status") != "right" else "")
            if reason:
                where = f"{each['axis']} {each['x']}"
                found.setdefault(f"{job['backend']}: {way.get('status', 'unsupported')}, {reason}", []).append(where)
    return {line: list(dict.fromkeys(places)) for line, places in found.items()}


def _processes(kept: Mapping[str, Any], device: str | None, backend: str | None = None) -> list[Mapping[str, Any]]:
    return [
        process
        for process in kept["processes"]
        if device in (None, process["job"]["device"]) and backend in (None, process["job"]["backend"])
    ]


def _points(process: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    points: Iterable[Mapping[str, Any]] = process["found"].get("points", ())
    return points
