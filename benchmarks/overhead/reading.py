"""What was kept of the study, as ratios with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crosslens.benchmarks.estimate import Estimate, median_ratio

from .operations import NEW

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One backend on one operation and shape, on one device; one dict a process.

    Args:
        processes: name of a way -> its `status`, and `s`, the seconds of its samples, or `reason`.
    """

    backend: str
    operation: str
    shape: str
    device: str
    processes: Sequence[Mapping[str, Any]]

    def ratio(self, way: str, base: str) -> Estimate | None:
        """Of a way to another, block by block; None unless both are right in every process."""
        found = []
        for ways in self.processes:
            one, other = (np.array(ways.get(name, {}).get("s", ())) for name in (way, base))
            count = min(len(one), len(other))  # a slow way has samples of the first blocks alone
            if not count:
                return None
            found.append(one[:count] / other[:count])
        return median_ratio(found) if found else None

    def over(self, way: str) -> float | None:
        """Median, over processes, of each one's median milliseconds over bare; of a generation, for each token."""
        calls = NEW if self.operation == "generate" else 1
        found = []
        for ways in self.processes:
            one, bare = (np.array(ways.get(name, {}).get("s", ())) for name in (way, "bare"))
            count = min(len(one), len(bare))
            if not count:
                return None
            found.append(1e3 * float(np.median(one[:count] - bare[:count])))
        return float(np.median(found)) / calls if found else None

    def samples(self, way: str) -> int:
        """How many there are, over all processes."""
        return sum(len(ways.get(way, {}).get("s", ())) for ways in self.processes)

    def device_bytes(self, way: str) -> int | None:
        """That a call allocates on the device at its peak, in the first process."""
        found: int | None = self.processes[0].get(way, {}).get("device_bytes") if self.processes else None
        return found

    def why(self, way: str) -> tuple[str, str]:
        """(status, reason) of the first process in which a way is not right; empty where it is right in all."""
        for ways in self.processes:
            status = ways.get(way, {"status": "impossible", "reason": ""})
            if status["status"] not in ("right", "bare"):
                return status["status"], status["reason"]
        return "", ""


def cells(kept: Mapping[str, Any]) -> list[Cell]:
    """All of them, in the order in which they were asked for; those of processes that died are not there."""
    found: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for process in kept["processes"]:
        job = process["job"]
        for each in process["found"].get("cells", ()):
            key = (job["backend"], each["operation"], each["shape"], job["device"])
            found.setdefault(key, []).append(each["ways"])
    return [Cell(*key, processes) for key, processes in found.items()]


def left_out(kept: Mapping[str, Any]) -> dict[str, str]:
    """Backend -> why it has no cells, or why a process of it has no answer."""
    found: dict[str, str] = dict(kept["settings"]["left_out"])
    for process in kept["processes"]:
        answer = process["found"]
        if why := answer.get("error") or answer.get("reason"):
            found[process["job"]["backend"]] = why
    return found


def controls(kept: Mapping[str, Any]) -> dict[tuple[str, str], Estimate]:
    """(shape, operation) -> the same backend under another name, to itself."""
    every = ((cell, cell.ratio("again", "through")) for cell in cells(kept) if cell.device == "cpu")
    return {(cell.shape, cell.operation): ratio for cell, ratio in every if ratio is not None}


def together(some: Sequence[Cell], way: str, base: str) -> Estimate | None:
    """Geometric mean over cells of one backend, block by block; None unless every cell has a ratio."""
    if not some or any(cell.ratio(way, base) is None for cell in some):
        return None
    means = []
    for i in range(min(len(cell.processes) for cell in some)):
        logs = []
        for cell in some:
            one, other = (np.array(cell.processes[i][name]["s"]) for name in (way, base))
            count = min(len(one), len(other))
            logs.append(np.log(one[:count] / other[:count]))
        blocks = min(map(len, logs))
        means.append(np.exp(np.mean([each[:blocks] for each in logs], axis=0)))
    return median_ratio(means)


def slowed(kept: Mapping[str, Any]) -> dict[str, float]:
    """Backend -> the bare forward of `capture_one` while it is open, to that before it was opened; medians."""
    found: dict[str, list[float]] = {}
    for process in kept["processes"]:
        job, answer = process["job"], process["found"]
        first = job["shapes"][0]["name"]
        beside = [c["ways"]["bare"]["s"] for c in answer.get("cells", ()) if c["shape"] == first and
                  c["operation"] == "capture_one" and job["device"] == "cpu"]  # fmt: skip
        if beside and beside[0]:
            found.setdefault(job["backend"], []).append(float(np.median(beside[0]) / np.median(answer["alone_s"])))
    return {backend: float(np.median(values)) for backend, values in found.items()}
