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
from typing import Any, Protocol

import psutil

from .environment import memory_bytes
from .warm import start as fork

Follow = Callable[[str, int, int], None]
"""Called with (stage, steps done, steps in all; 0 where a stage has no steps)."""

WORKER = (sys.executable, "-P", "-m", "crosslens.benchmarks.worker")
"""The worker's command; -P: a file in the user's folder must not stand for a library's module."""
REAPER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")))
_TICK = 0.25  # seconds between two looks at the worker: rare enough not to disturb what it times
_TICKS = 4  # between two looks at the worker's children, which cost more
_GRACE = 10.0  # seconds that a worker whose work is done gets to end
_ENDING = 8.0  # seconds that the reaper gets to end everything
_LEAST_LEFT = 0.03  # of the machine's memory; below it the system would soon kill something itself
_LOG_LINES, _LINE, _LOG_BYTES = 30, 500, 16_000  # what is kept of what a worker printed
_TEXT = 4_000  # characters kept of a reason
_TRACE = 20_000  # and of a traceback
_ROOM = 1 << 20  # bytes that a disk which is not full has
_VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Outcome:
    """What a worker left: the cell's findings with `status` and `reason` set, and its timing samples."""

    cell: dict[str, Any]
    samples: list[dict[str, Any]]


def run_worker(
    job: Mapping[str, Any],
    folder: Path,
    *,
    timeout: float,
    follow: Follow,
    stop: threading.Event | None = None,
    memory: float | None = None,
    warm: bool = False,
) -> Outcome:
    """Run one cell in a fresh Python process, to its end, its crash or its limit.

    Args:
        job: what the worker is to do; see `worker.py`.
        folder: scratch, for this worker alone, in the run's folder.
        timeout: seconds after which it is stopped.
        follow: gets the worker's reports.
        stop: ends it when set.
        memory: bytes that are its share: if it holds more than half of that when the machine has next to none left, it
            is stopped, before the system kills something; None for the machine's, shared by the cores.
        warm: fork the process from one that has imported what all cells need; see `warm.py`.

    Raises:
        InterruptedError: it was told to stop.
        OSError: the disk is full, or the system starts no process; says nothing about the cell, which is to be run
            again.

    However this function is left, or the process ends that called it, the worker has ended and so has all that it had
    started; see `reaper.py`. What it prints is kept to the last two megabytes while it runs.
    """
    memory = memory or memory_bytes() * int(job["threads"]) / (os.cpu_count() or 1)
    kills, start, load = _out_of_memory_kills(), time.monotonic(), os.getloadavg()[0]
    reaper = _start(job, folder, warm)
    try:
        watch = _watch(reaper, folder, start + timeout, memory, follow, stop or threading.Event())
    finally:
        code, notes = end(reaper)
    found = _read(folder / "cell.json")
    cell, samples = found.get("cell", {"stage": "starting", "figures": {}}), found.get("samples", [])
    if not cell.get("finished"):
        samples = []
        cell["status"], cell["reason"] = _died(watch, code, timeout, _out_of_memory_kills() > kills)
    elif watch.expired or code != 0:
        how = "did not end by itself" if watch.expired else f"ended with {_exit_name(code)}"
        cell["reason"] = "; ".join(filter(None, (cell["reason"], f"the process {how} after its work was done")))
    if cell["status"] in ("failed", "crashed", "timeout", "out-of-memory"):
        _refuse_full_disk(folder)
        cell["reason"] = f"while {cell['stage']}: {cell['reason']}"
        cell["log"] = [*_last_lines(folder / "log"), *notes]
    if cell["reason"]:
        cell["reason"] = _cut(cell["reason"], _TEXT)
    if "traceback" in cell:
        cell["traceback"] = _cut(cell["traceback"], _TRACE)
    cell.pop("finished", None)
    cell["seconds"], cell["load"] = time.monotonic() - start, load
    return Outcome(cell, samples)


class Reaper(Protocol):
    """Of `subprocess.Popen`, what is used here."""

    stdin: Any
    stdout: Any

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


def _start(job: Mapping[str, Any], folder: Path, warm: bool) -> Reaper:
    """The reaper, which starts the worker."""
    threads = str(job["threads"])
    env = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",  # a segmentation fault prints where it was
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    try:
        if warm:
            return fork(job, folder, env)
        return subprocess.Popen(
            [*REAPER, str(folder / "log"), *WORKER, str(folder)],
            stdin=subprocess.PIPE,  # when it closes, as it does when this process ends, the worker is ended
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | env,
            start_new_session=True,  # Ctrl-C is for the runner, which then stops the worker
        )
    except OSError as error:
        raise OSError(error.errno, f"no process can be started for a cell: {error.strerror}") from error


@dataclass
class _Watch:
    expired: bool = False
    resident: int = 0  # bytes, when last seen
    over: float | None = None  # bytes: its share, where it held more as memory ran out


def _watch(
    reaper: Reaper,
    folder: Path,
    deadline: float,
    memory: float,
    follow: Follow,
    stop: threading.Event,
) -> _Watch:
    """Wait for the worker's end, or for its deadline."""
    watch, shown, ticks = _Watch(), "", 0
    told = reaper.stdout.readline().split()  # at once: the first thing that the reaper does
    process = None
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        process = psutil.Process(int(told[1])) if told[:1] == [b"pid"] else None
    while True:
        try:
            reaper.wait(_TICK)
            return watch
        except subprocess.TimeoutExpired:
            ticks += 1
        if stop.is_set():
            raise InterruptedError
        if process is not None:
            watch.resident = _resident(process, children=ticks % _TICKS == 0) or watch.resident  # 0: it has just ended
        machine = psutil.virtual_memory()
        if machine.available < _LEAST_LEFT * machine.total and watch.resident > memory / 2:
            watch.over = memory
            return watch
        line = _last_line(folder / "progress")
        if line != shown:
            shown = line
            stage, done, total = line.split("\t")
            follow(stage, int(done), int(total))
            if stage == "done":
                deadline = min(deadline, time.monotonic() + _GRACE)
        if time.monotonic() > deadline:
            watch.expired = True
            return watch


def _resident(process: psutil.Process, *, children: bool) -> int:
    """Bytes that a worker holds, with what its children hold beside it."""
    try:
        held = int(process.memory_info().rss)
        others = process.children(recursive=True) if children else []
    except psutil.NoSuchProcess:
        return 0
    for other in others:
        with contextlib.suppress(psutil.Error):
            held += int(other.memory_full_info().uss)  # not what it shares with the process that it was forked from
    return held


def _last_line(progress: Path) -> str:
    """The last whole line of the worker's reports."""
    try:
        lines = _tail(progress, 512).split("\n")
    except FileNotFoundError:
        return ""
    return lines[-2] if len(lines) > 1 else ""


def _tail(path: Path, size: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read().decode(errors="replace")


def _last_lines(log: Path) -> list[str]:
    """The end of what a worker printed, no more of it than one wants to read."""
    text = ""
    for path in (log.with_name("log.old"), log):
        with contextlib.suppress(FileNotFoundError):
            text += _tail(path, _LOG_BYTES)
    return [_cut(line, _LINE) for line in text[-_LOG_BYTES:].splitlines()[-_LOG_LINES:]]


def _cut(text: str, most: int) -> str:
    """Its beginning and its end, where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most} characters ...] {text[len(text) - most // 2 :]}"


def end(reaper: Reaper) -> tuple[int, list[str]]:
    """End the worker and whatever it started; its exit code, and what else the reaper said."""
    reaper.stdin.close()
    try:
        reaper.wait(_ENDING)
    except subprocess.TimeoutExpired:
        reaper.kill()
        reaper.wait()
    said = reaper.stdout.read().decode(errors="replace").splitlines()
    reaper.stdout.close()
    code, notes = -signal.SIGKILL, []
    for line in said:
        word, _, number = line.partition(" ")
        if word == "ended" and number.lstrip("-").isdigit():
            code = int(number)
        elif word == "left":
            notes.append(f"crosslens: {number} processes that the worker had started could not be ended")
        elif word != "pid":
            notes.append(f"crosslens: {line}")
    return code, notes


def _refuse_full_disk(folder: Path) -> None:
    """Raise where there is no room: whatever went wrong in a worker then, is not its backend's doing.

    Raises:
        OSError: the disk is full.
    """
    probe = folder / "room"
    try:
        probe.write_bytes(bytes(_ROOM))
    finally:
        probe.unlink(missing_ok=True)


def _died(watch: _Watch, code: int, timeout: float, out_of_memory: bool) -> tuple[str, str]:
    held = f"; it last held {watch.resident / 1e6:.0f} MB" if watch.resident else ""
    if watch.over is not None:
        share = f"more than half its share of {watch.over / 1e6:.0f} MB"
        return "out-of-memory", f"stopped while the machine had next to no memory left{held}, {share}"
    if watch.expired:
        return "timeout", f"stopped after {timeout:g} s, the limit of a cell (--timeout)"
    if out_of_memory and code == -signal.SIGKILL:
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
