"""One worker process: started, followed, and stopped where it must be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

Follow = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all; 0 where a stage has no steps)."""

_TICK = 0.25  # seconds between two looks at the worker: rare enough not to disturb what it times
_GRACE = 10.0  # seconds that a worker whose work is done gets to end
_LOG_LINES = 30
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Outcome:
    """What a worker left: the cell's findings with `status` and `reason` set, and its timing samples."""

    cell: dict[str, Any]
    samples: list[dict[str, Any]]


def run_worker(
    job: Mapping[str, Any], folder: Path, *, timeout: float, follow: Follow, stop: threading.Event | None = None
) -> Outcome:
    """Run one cell in a fresh Python process, to its end, its crash or its time limit.

    Args:
        job: what the worker is to do; see `worker.py`.
        folder: scratch, for this worker alone.
        timeout: seconds after which it is stopped.
        follow: gets the worker's reports.
        stop: ends it when set.

    Raises:
        InterruptedError: it was told to stop.

    However this function is left, the worker and its children have ended.
    """
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    threads = str(job["threads"])
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    kills, start = _out_of_memory_kills(), time.monotonic()
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(
            # -P: a file in the user's folder must not stand for a library's module
            [sys.executable, "-P", "-m", "crosslens.benchmarks.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # Ctrl-C is for the runner, which then stops the worker
        )
        try:
            watch = _watch(worker, folder, start + timeout, follow, stop or threading.Event())
        finally:
            _stop(worker)
    found = _read(folder / "cell.json")
    cell, samples = found.get("cell", {"stage": "starting", "figures": {}}), found.get("samples", [])
    if not cell.get("finished"):
        samples = []
        cell["status"], cell["reason"] = _died(watch, worker.returncode, timeout, _out_of_memory_kills() > kills)
    elif watch.expired or worker.returncode != 0:
        how = "did not end by itself" if watch.expired else f"ended with {_exit_name(worker.returncode)}"
        cell["reason"] = "; ".join(filter(None, (cell["reason"], f"the process {how} after its work was done")))
    if cell["status"] in ("failed", "crashed", "timeout", "out-of-memory"):
        cell["reason"] = f"while {cell['stage']}: {cell['reason']}"
        cell["log"] = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    cell.pop("finished", None)
    cell["seconds"] = time.monotonic() - start
    return Outcome(cell, samples)


@dataclass
class _Watch:
    expired: bool = False
    resident: int = 0  # bytes, when last seen


def _watch(
    worker: subprocess.Popen[bytes], folder: Path, deadline: float, follow: Follow, stop: threading.Event
) -> _Watch:
    """Wait for the worker's end, or for its deadline."""
    watch = _Watch()
    progress, process = folder / "progress", psutil.Process(worker.pid)
    shown = ""
    while True:
        try:
            worker.wait(_TICK)
            return watch
        except subprocess.TimeoutExpired:
            pass
        if stop.is_set():
            raise InterruptedError
        try:
            watch.resident = process.memory_info().rss or watch.resident  # 0 for one that has just ended
        except psutil.NoSuchProcess:
            continue
        line = _last_line(progress)
        if line != shown:
            shown = line
            stage, done, total = line.split("\t")
            follow(stage, int(done), int(total))
            if stage == "done":
                deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            watch.expired = True
            return watch


def _last_line(progress: Path) -> str:
    """The last whole line of the worker's reports."""
    try:
        with progress.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 512))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return lines[-2] if len(lines) > 1 else ""


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started."""
    if hasattr(os, "killpg"):  # the worker leads a group of its own, which may outlive it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    else:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(worker.pid).children(recursive=True):
                process.kill()
        worker.kill()
    worker.wait()
    assert worker.stdin is not None
    worker.stdin.close()


def _died(watch: _Watch, code: int, timeout: float, out_of_memory: bool) -> tuple[str, str]:
    held = f"; it last held {watch.resident / 1e6:.0f} MB" if watch.resident else ""
    if watch.expired:
        return "timeout", f"stopped after {timeout:g} s, the limit of a cell (--timeout)"
    if out_of_memory and code == -9:
        return "out-of-memory", f"killed by the system, which ran out of memory{held}"
    return "crashed", f"the process ended with {_exit_name(code)}{held}"


def _exit_name(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _out_of_memory_kills() -> int:
    """How many processes Linux has killed for want of memory since it started; 0 elsewhere."""
    if not _VMSTAT.exists():
        return 0
    rows = (line.split() for line in _VMSTAT.read_text().splitlines())
    return next((int(row[1]) for row in rows if row[0] == "oom_kill"), 0)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
