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
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosslens.adapters import BackendNotInstalledError, InputError, Inspector, UnsupportedError, load_backend
from crosslens.tasks import Result, Task, load_model
from crosslens.tasks.base import Progress

from .environment import library_version
from .memory import PeakMemory, device_memory, mark_device, resident
from .plan import find_task, implementation, why_not
from .store import to_json
from .timing import Call, Sampling, no_garbage_collection, seconds, time_blocks

_REPORT_EVERY = 0.2  # seconds between two progress lines
_ALONE = 3  # calls of the bare forward before the backend is opened


class Report:
    """What this process has found so far, on disk for the runner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cell: dict[str, Any] = {"status": None, "stage": None, "reason": None, "figures": {}}
        self.samples: list[dict[str, Any]] = []
        self._progress = (folder / "progress").open("a", encoding="utf-8")
        self._reported = 0.0

    def stage(self, name: str) -> Progress:
        """Start a part of the work; gives the function to report its progress with."""
        self.cell["stage"] = name
        self.save()
        self._line(name, 0, 0)

        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if done >= total or now - self._reported >= _REPORT_EVERY:
                self._reported = now
                self._line(name, done, total)

        return progress

    def end(self, status: str, reason: str | None = None) -> None:
        """The cell's outcome, and why."""
        self.cell["status"], self.cell["reason"] = status, reason

    def finish(self) -> None:
        """Say that nothing more will come: whatever holds this process up now is no part of the work."""
        self.cell["finished"] = True
        self.save()
        self._line("done", 1, 1)

    def save(self) -> None:
        """Write what is known, so that it outlives a crash."""
        part = self.folder / "cell.json.part"
        part.write_text(to_json({"cell": self.cell, "samples": self.samples}), encoding="utf-8")
        os.replace(part, self.folder / "cell.json")

    def keep(self, task: Task, result: Result, work: Any) -> None:
        """Keep the result arrays, the task's own table of them, and its finding."""
        if not isinstance(result, Mapping):
            raise InputError(f"task {task.name!r} gives {type(result).__name__}; a result is a mapping, name -> array")
        arrays = {name: np.asarray(values, dtype=np.float64) for name, values in result.items()}
        np.savez_compressed(self.folder / "result.npz", allow_pickle=False, **arrays)
        task.table(result, work).to_csv(self.folder / "result.csv", index=False)
        self.cell["headline"] = task.headline(result, work)

    def _line(self, stage: str, done: int, total: int) -> None:
        self._progress.write(f"{stage}\t{done}\t{total}\n")
        self._progress.flush()


def reference(job: dict[str, Any], report: Report) -> None:
    """Compute what backends are compared with; then time the bare forward against itself, as a control."""
    figures, memory = report.cell["figures"], PeakMemory()
    task = find_task(job["task"])
    model, _, work = _load(job, task, report)
    progress = report.stage("computing the reference")
    start = time.perf_counter()
    result = task.reference(model, work, progress)
    figures["task_s"] = time.perf_counter() - start
    report.keep(task, result, work)
    if job["model"] in task.known_on:
        known = task.known(result, work)
        report.cell["known"] = asdict(known)
        if not known.holds:
            report.end("failed", f"the reference does not show what is known: {known.fact}; found: {known.found}")
            return
    figures.update(peak_bytes=memory.whole(), **device_memory())
    _time(job, report, {"bare": task.bare(model, work), "step": task.bare(model, work)})
    report.end("done")


def backend(job: dict[str, Any], report: Report) -> None:
    """Run the task through a backend, judge it, and, if it is right, time it."""
    figures, memory = report.cell["figures"], PeakMemory()
    task = find_task(job["task"])
    import transformers  # noqa: F401  before the clock starts: whoever uses a backend here has it anyway

    report.stage("importing the backend")
    start = time.perf_counter()
    kind = load_backend(implementation(job["backend"]))
    figures["import_s"] = time.perf_counter() - start
    report.cell["library"] = kind.library or "torch"
    report.cell["version"] = library_version(report.cell["library"])
    if reason := why_not(task, kind):
        report.end("unsupported", reason)
        return
    model, tokenizer, work = _load(job, task, report)
    bare = task.bare(model, work)
    report.stage("timing the bare forward alone")
    seconds(bare, 1)
    with no_garbage_collection():
        figures["bare_alone_s"] = float(np.median([seconds(bare, 1) for _ in range(_ALONE)]))
    figures["loaded_bytes"], marked = resident(), memory.mark()
    mark_device()  # what loading and the bare forward held is no part of the backend's
    report.stage("wrapping the model")
    start = time.perf_counter()
    lens = kind(model, tokenizer)
    figures["wrap_s"] = time.perf_counter() - start
    try:
        _use(lens, task, work, job, report)
        if marked:
            figures["rise_bytes"] = max(0, memory.since_mark() - figures["loaded_bytes"])
        figures.update(peak_bytes=memory.whole(), **device_memory())
        if report.cell["status"] == "right":
            with ExitStack() as beside:
                hooks = _native(beside, task, model, tokenizer, work, report) if _is_timed(job) else {}
                _time(job, report, {"bare": bare, **hooks, "step": task.step(lens, work)})
    finally:
        start = time.perf_counter()
        lens.close()
        figures["close_s"] = time.perf_counter() - start
        figures.setdefault("peak_bytes", memory.whole())


def _load(job: dict[str, Any], task: Task, report: Report) -> tuple[Any, Any, Any]:
    """The model, its tokenizer and the task's data."""
    report.stage("loading the model")
    start = time.perf_counter()
    dtype, attention = getattr(torch, job["dtype"]), job["attn_implementation"]
    model, tokenizer = load_model(job["model"], dtype=dtype, attn_implementation=attention, device=job["device"])
    report.cell["figures"]["load_s"] = time.perf_counter() - start
    report.stage("preparing the data")
    return model, tokenizer, task.prepare(model, tokenizer, size=job["size"])


def _use(lens: Inspector, task: Task, work: Any, job: dict[str, Any], report: Report) -> None:
    """First call, the whole task, and its score against the reference."""
    figures = report.cell["figures"]
    report.stage("first call")
    figures["first_call_s"] = seconds(task.step(lens, work), 1)
    progress = report.stage("running the task")
    start = time.perf_counter()
    result = task.run(lens, work, progress)
    figures["task_s"] = time.perf_counter() - start
    report.stage("comparing with the reference")
    report.keep(task, result, work)
    with np.load(job["reference"]) as stored:
        score = task.score(result, dict(stored), work, job["dtype"])
    report.cell["score"] = asdict(score)
    if not score.right:
        report.end("wrong", f"largest relative error {score.max_rel_error:.2g}; the result has no time")
    elif score.effect < task.least_effect:
        report.end("vacuous", f"the effect is {score.effect:.2g} times the noise: too small to tell right from wrong")
    else:
        report.end("right")


def _native(beside: ExitStack, task: Task, model: Any, tokenizer: Any, work: Any, report: Report) -> dict[str, Call]:
    """The same step through native hooks, open on the same model until `beside` closes; nothing where they cannot.

    What they cannot is no fault of the backend under test: the cell says why it has no such baseline.
    """
    hooks = load_backend("hooks")
    if reason := why_not(task, hooks):
        report.cell["no_hooks"] = reason
        return {}
    report.stage("opening native hooks beside")
    try:
        step = task.step(beside.enter_context(hooks(model, tokenizer)), work)
        step()
    except Exception as error:
        report.cell["no_hooks"] = f"{type(error).__name__}: {error}"
        return {}
    return {"hooks": step}


def _is_timed(job: dict[str, Any]) -> bool:
    """Whether the run takes samples at all, or judges results alone."""
    most: int = job["sampling"]["most"]
    return most > 0


def _time(job: dict[str, Any], report: Report, calls: Mapping[str, Call]) -> None:
    if not _is_timed(job):
        return
    progress = report.stage("timing")
    # of each process its own, so that no order is in all of them
    timing = time_blocks(calls, Sampling(**job["sampling"]), seed=f"{job['seed']} {job['id']}", progress=progress)
    report.cell["timing"] = {"blocks": len(timing.blocks), "calls": timing.calls, "warmups": timing.warmups}
    report.samples = [
        {"order": ",".join(block), **{f"{name}_s": value for name, value in block.items()}} for block in timing.blocks
    ]


def main(folder: Path) -> None:
    """Do the job in `folder`; whatever goes wrong in it is the cell's outcome."""
    threading.Thread(target=_die_with_runner, daemon=True).start()
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job.get("cores"):
        os.sched_setaffinity(0, job["cores"])
    torch.set_num_threads(job["threads"])
    if ":" in job["device"]:  # so that what is waited for, and whose memory is read, is that GPU
        torch.cuda.set_device(job["device"])
    report = Report(folder)
    try:
        {"reference": reference, "backend": backend}[job["kind"]](job, report)
    except UnsupportedError as error:
        report.end("unsupported", str(error))
    except BackendNotInstalledError as error:  # it was there when the run was planned, or is on the driver's machine
        report.end("not-installed", str(error))
    except Exception as error:  # whatever a library raises is a result
        report.end("out-of-memory" if _is_memory(error) else "failed", f"{type(error).__name__}: {error}")
        report.cell["traceback"] = traceback.format_exc()
    report.finish()


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU, PyTorch has no error type of its own for it."""
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return out_of_memory or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _die_with_runner() -> None:
    """End this process when the runner's end of the pipe closes, however the runner ended."""
    os.read(0, 1)  # not sys.stdin: its lock would be held while the interpreter shuts down
    os._exit(70)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
