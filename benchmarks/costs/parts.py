"""The parts of the study: what each measures, how much of it, and the processes that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crosslens.adapters import BackendNotInstalledError, load_backend

from . import comparing, kpi, recorder, sweep

Job = dict[str, Any]
"""What one process measures: `part`, `repeat`, and what the part's `measure` asks for; all of it JSON."""


@dataclass(frozen=True)
class Part:
    """One of them.

    Args:
        measure: a job -> what is kept of it.
        jobs: what each process is asked for, beside `part`, `repeat` and `rounds`.
        quick: the same, where it is only to be seen that it runs.
        rounds: in each process, of a part that is timed; 0: it is not, and one process of each job is enough.
    """

    measure: Callable[[Job], dict[str, Any]]
    jobs: Sequence[Job]
    quick: Sequence[Job]
    rounds: int


def _memory(*examples: int) -> list[Job]:
    return [{"model": "tiny-llama", "examples": each} for each in examples]


PARTS: dict[str, Part] = {
    "kpi": Part(kpi.measure, [{"megabytes": [1, 35, 300]}], [{"megabytes": [0.1, 1]}], 2),
    "compare": Part(
        comparing.measure, [{"model": "smollm2-135m", "texts": 96}], [{"model": "tiny-llama", "texts": 32}], 1
    ),
    "memory": Part(comparing.measure_memory, _memory(1_000, 10_000, 100_000), _memory(200, 400), 0),
    "recorder": Part(
        recorder.measure, [{"steps": 256, "comgra_steps": 24}], [{"steps": 16, "comgra_steps": 4}], 2
    ),
    "sweep": Part(sweep.measure, [{"model": "smollm2-135m", "sample": 8}], [{"model": "tiny-llama", "sample": 4}], 1),
}  # fmt: skip
"""About ten minutes on an idle core, as the CPU times of single calls add up. Intervals are over processes: three of
each part, with as few rounds in each as that leaves, and for the same reason 96 stories to compare and 8 edits of a
loop. Memory is read once for each corpus."""


def missing() -> dict[str, str]:
    """Backends that are compared with and are not installed -> why not."""
    found = {}
    for name in (*sweep.BACKENDS, "comgra"):
        try:
            load_backend(name)
        except BackendNotInstalledError as error:
            found[name] = str(error)
    return found


def jobs(names: Sequence[str], processes: int, rounds: int | None, quick: bool, left_out: Sequence[str]) -> list[Job]:
    """Every process, in the order in which they run: parts take turns, so that what drifts falls on all alike.

    Args:
        names: that `checked` gave.
        processes: of each part that is timed.
        rounds: in each; None: as many as the part has.
        left_out: backends that are not there.
    """
    made: list[Job] = []
    for repeat in range(processes):
        for name in names:
            part = PARTS[name]
            if repeat and not part.rounds:
                continue
            for each in part.quick if quick else part.jobs:
                job = {"part": name, "repeat": repeat, "rounds": rounds or part.rounds if part.rounds else 0, **each}
                if name == "sweep":
                    job["backends"] = [backend for backend in sweep.BACKENDS if backend not in left_out]
                if name == "recorder" and "comgra" in left_out:
                    job["comgra_steps"] = 0
                made.append(job)
    return made
