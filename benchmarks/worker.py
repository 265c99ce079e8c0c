"""One cell, in a process of its own: `python -m crosslens.benchmarks.worker FOLDER`.

FOLDER holds `job.json`. The worker writes there `cell.json` anew after every stage, so that a crash leaves what was
known before it; `result.npz` and `result.csv`; and `progress`, one line a report. It prints nothing of its own: what
the libraries print goes to the log that the runner keeps.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosslens.adapters import Inspector, UnsupportedError, load_backend
from crosslens.tasks import Result, Task, load_model

from .environment import library_version
from .memory import PeakMemory, resident
from .plan import find_task
from .store import to_json
from .timing import Sampling, no_garbage_collection, seconds, time_pairs

_REPORT_EVERY = 0.2  # seconds between two progress lines
_ALONE = 5  # calls of the bare forward before the backend is opened


class Report:
    """What this process has found so far, on disk for the runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cell: dict[str, Any] = {"status": None, "stage": None, "reason": None, "figures": {}}
        self.samples: list[dict[str, Any]] = []
        self._progress = (folder / "progress").open("a", encoding="utf-8")
        self._reported = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A part of the work, by name; gives the function to report its progress with."""
        self.cell["stage"] = name
        self.save()
        self._line(name, 0, 0)

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if done >= total or now - self._reported >= _REPORT_EVERY:
                self._reported = now
                self._line(name, done, total)

        yield progress

    def end(self, status: str, reason: str | None = None) -> None:
        """The cell's outcome; the first one said counts."""
        self.cell["status"] = status
        self.cell["reason"] = reason
        self.cell["stage"] = None if status in ("right", "done") else self.cell["stage"]

    def save(self) -> None:
        """Write what is known, so that it outlives a crash."""
        part = self.folder / "cell.json.part"
        part.write_text(to_json({"cell": self.cell, "samples": self.samples}), encoding="utf-8")
        os.replace(part, self.folder / "cell.json")

    def result(self, task: Task, result: Result, work: Any) -> None:
        """Keep the result arrays, the task's own table of them, and its finding."""
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in result.items()}
        np.savez_compressed(self.folder / "result.npz", **arrays)  # type: ignore[arg-type]
        task.table(result, work).to_csv(self.folder / "result.csv", index=False)
        self.cell["headline"] = task.headline(result, work)

    def _line(self, stage: str, done: int, total: int) -> None:
        self._progress.write(f"{stage}\t{done}\t{total}\n")
        self._progress.flush()


def reference(job: dict[str, Any], report: Report) -> None:
    """Compute what backends are compared with; then time the bare forward against itself."""
    task = find_task(job["task"])
    model, work = _model_and_work(job, task, report)
    with report.stage("computing the reference") as progress:
        start = time.perf_counter()
        result = task.reference(model, work, progress)
        report.cell["figures"]["task_s"] = time.perf_counter() - start
        report.result(task, result, work)
    with report.stage("timing the bare forward against itself") as progress:
        _time(job, report, task.bare(model, work), task.bare(model, work), progress)
    report.cell["figures"]["peak_bytes"] = PeakMemory().whole()
    report.end("done")


def backend(job: dict[str, Any], report: Report) -> None:
    """Run the task through a backend, judge it, and, if it is right, time it."""
    figures, memory = report.cell["figures"], PeakMemory()
    task = find_task(job["task"])
    import transformers  # noqa: F401  before the clock starts: every user of a backend here has it anyway

    with report.stage("importing the backend"):
        start = time.perf_counter()
        kind = load_backend(job["backend"])
        figures["import_s"] = time.perf_counter() - start
        report.cell["library"] = kind.library or "torch"
        report.cell["version"] = library_version(report.cell["library"])
    lacking = [(need, state) for need, state in kind.supports().items() if need in task.needs and not state]
    if lacking:
        report.end("unsupported", "; ".join(f"{need} ({state.state}): {state.reason}" for need, state in lacking))
        return
    model, work = _model_and_work(job, task, report)
    bare = task.bare(model, work)
    with report.stage("timing the bare forward alone"):
        seconds(bare, 2)
        with no_garbage_collection():
            alone = [seconds(bare, 1) for _ in range(_ALONE)]
        figures["bare_alone_s"] = float(np.median(alone))
    figures["loaded_bytes"], marked = resident(), memory.mark()
    with report.stage("wrapping the model"):
        start = time.perf_counter()
        lens = kind(model, tokenizer=job["tokenizer"])
        figures["wrap_s"] = time.perf_counter() - start
    try:
        _through(lens, task, work, bare, job, report)
    finally:
        with report.stage(report.cell["stage"] if sys.exc_info()[0] else "closing"):
            start = time.perf_counter()
            lens.close()
            figures["close_s"] = time.perf_counter() - start
        if marked:
            figures["rise_bytes"] = memory.since_mark() - figures["loaded_bytes"]
        figures["peak_bytes"] = memory.whole()
