"""Runs of stand-ins, in processes that tests can kill; a fork server imports everything once for all of them."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from crosslens.benchmarks import cli, launch, run, store
from crosslens.benchmarks.plan import Plan, make_plan
from crosslens.benchmarks.progress import Show
from crosslens.benchmarks.store import RunFolder
from crosslens.benchmarks.timing import Sampling

STAND_IN = (sys.executable, "-S", "-P", str(Path(__file__).with_name("stand_in.py")))


class Quiet(Show):
    """Tells nobody."""

    def start(self, cell: str) -> None: ...

    def follow(self, cell: str, stage: str, done: int, total: int) -> None: ...

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...


def a_plan(repeats: int = 2, jobs: int = 2) -> Plan:
    """Two tasks, native hooks twice: 2 references and 4 * `repeats` cells."""
    plan = make_plan("default", backend=["hooks"], task=["ioi", "characters"], model=["tiny-llama"], repeats=repeats)
    return replace(plan, size="smoke", jobs=jobs, threads=1, timeout=60.0, sampling=Sampling(3, 3, 1.0))


def drive(path: Path, plan: Plan, facts: dict[str, Any]) -> None:
    """Begin the run in `path`, or go on with it, to its end."""
    launch.WORKER = STAND_IN
    folder = RunFolder.resume(path, facts) if (path / "run.json").exists() else RunFolder(path, facts)
    run.execute(plan, folder, Quiet())
    folder.close()


def command(arguments: Sequence[str], said: Path) -> None:
    """`crosslens ARGUMENTS`, its stderr kept in a file."""
    launch.WORKER = STAND_IN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["crosslens", *arguments]
    with said.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(io.StringIO()):
        cli.main()


def context() -> ForkServerContext:
    """Processes that start in milliseconds."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.drivers"])
    return found


def still_running(path: Path) -> list[str]:
    """Commands of the processes that work for a run in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(path) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(line)
    return found


def gone(path: Path, seconds: float = 5.0) -> bool:
    """Whether, soon, no process works for a run in this folder."""
    until = time.monotonic() + seconds
    while still_running(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


__all__ = ["STAND_IN", "ForkServerProcess", "Quiet", "a_plan", "command", "context", "drive", "gone", "store"]
