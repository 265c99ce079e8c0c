"""Runs that are killed, stopped, out of disk or out of time order: no cell is lost, none is run twice."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from crosslens.adapters import InputError
from crosslens.benchmarks import launch
from crosslens.benchmarks.executors import local
from crosslens.benchmarks.plan import Plan
from crosslens.benchmarks.run import execute, facts
from crosslens.benchmarks.store import RunFolder, read_run
from crosslens.benchmarks.stored import check_whole

from .drivers import STAND_IN, Quiet, a_plan, command, context, drive, gone

MOMENTS = int(os.environ.get("CROSSLENS_KILLS", "8"))
"""At how many random moments the runner is killed; the test was run with 50, and may be again."""
KILLS_A_RUN = 4


@pytest.fixture(scope="module")
def processes() -> Iterator[ForkServerContext]:
    """With a server of these tests alone: there is one in a process, and others want another."""
    forkserver._forkserver._stop()
    yield context()
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, dict[str, Any]]:
    plan = a_plan()
    return plan, facts(plan)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of cells.jsonl that were finished."""
    log = path / "cells.jsonl"
    return log.read_bytes().split(b"\n")[:-1] if log.exists() else []


def check_complete(path: Path, plan: Plan) -> None:
    """Every cell is there once, with its samples and its files, and nothing else is."""
    run = read_run(path)
    check_whole(path, run)
    assert sorted(cell["id"] for cell in run.cells) == sorted(cell.id for cell in plan.cells())
    assert {cell["status"] for cell in run.cells} == {"done", "right"}
    assert run.samples.groupby("cell").size().to_dict() == {cell.id: 3 for cell in plan.cells()}
    assert sorted(p.name for p in path.iterdir()) == ["cells.jsonl", "results", "run.json", "samples.parquet"]
    assert len(list((path / "results").iterdir())) == 2 * len(plan.cells())


# ---- the runner is killed


def test_no_cell_is_lost_or_doubled_when_the_runner_is_killed(
    processes: ForkServerContext, planned: tuple[Plan, dict[str, Any]], tmp_path: Path
) -> None:
    """kill -9 at random moments, several to a run; then the run goes on to its end."""
    plan, settings = planned
    draw, kills, cut = random.Random(6), 0, []
    warm = tmp_path / "warm" / "run"
    warm.parent.mkdir()
    for _ in range(2):  # the first one also starts the server
        shutil.rmtree(warm.parent)
        warm.parent.mkdir()
        start = time.monotonic()
        runner = processes.Process(target=drive, args=(warm, plan, settings))
        runner.start()
        runner.join(120)
        length = time.monotonic() - start
    check_complete(warm, plan)
    number = 0
    while kills < MOMENTS:
        path = tmp_path / str(number) / "run"
        path.parent.mkdir()
        number += 1
        kept: list[bytes] = []
        for _ in range(KILLS_A_RUN):
            runner = processes.Process(target=drive, args=(path, plan, settings))
            runner.start()
            runner.join(draw.uniform(0.0, length))
            runner.kill()
            runner.join()
            if runner.exitcode == 0:
                break  # it was done before
            assert runner.exitcode == -signal.SIGKILL
            kills += 1
            lines = whole_lines(path)
            assert lines[: len(kept)] == kept, "what had been kept is there, as it was"
            kept = lines
            cut.append(len(kept))
            assert gone(path.parent), "no worker outlives its runner"
            journal = path.parent / "journal"
            with journal.open("a") as file:
                file.write(f"killed {len(kept)}\n")
        runner = processes.Process(target=drive, args=(path, plan, settings))
        runner.start()
        runner.join(120)
        assert runner.exitcode == 0
        lines = whole_lines(path)
        assert lines[: len(kept)] == kept
        check_complete(path, plan)
        none_ran_again(path)
    print(f"killed at {kills} moments, of runs of {length:.2f} s; lines then: {sorted(cut)}")
    assert len(set(cut)) > 1, "the moments were of different kinds"


def none_ran_again(path: Path) -> None:
    """No cell that had its line when a runner was killed has been begun after that."""
    ids = [cell["id"] for cell in read_run(path).cells]
    finished: set[str] = set()
    for line in (path.parent / "journal").read_text().splitlines():
        word, what = line.split()
        if word == "killed":
            finished = set(ids[: int(what)])
        elif word == "begin":
            assert what not in finished, f"{what} was finished, and ran again"


class Dead(BaseException):
    """The process has been killed: from here on it does nothing more."""


class Mortal:
    """Lets a process be killed at its nth step that changes the disk, half of a write being done."""

    STEPS = ("replace", "write", "ftruncate", "unlink", "mkdir", "rmdir", "fsync")

    def __init__(self, last: int, patch: pytest.MonkeyPatch) -> None:
        self.steps, self.last = 0, last
        for name in self.STEPS:
            patch.setattr(os, name, self._mortal(getattr(os, name)))
        patch.setattr(Path, "write_text", self._mortal(Path.write_text, half=lambda p, text, **k: p.write_bytes(b"{")))
        to_parquet = "pandas.DataFrame.to_parquet"
        import pandas as pd

        patch.setattr(to_parquet, self._mortal(pd.DataFrame.to_parquet, half=lambda f, p, **k: p.write_bytes(b"PAR1")))
        self._write = os.write

    def _mortal(self, call: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            self.steps += 1
            if self.steps > self.last:
                if self.steps == self.last + 1:
                    if half is not None:
                        half(*arguments, **named)
                    elif call.__name__ == "write":
                        call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise Dead
            return call(*arguments, **named)

        return step


IDS = ["a", "b", "c"]
SETTINGS: dict[str, Any] = {
    "started": "2026-01-01T00:00:00+00:00",
    "arguments": {},
    "environment": {},
    "random_models": [],
    "cells": IDS,
}


def keep(folder: RunFolder, cell_id: str) -> None:
    """A cell with samples and results."""
    cell = {"id": cell_id, "kind": "backend", "backend": "hooks", "task": "t", "model": "m", "status": "right"}
    scratch = folder.scratch(cell_id)
    (scratch / "result.npz").open("wb").write(cell_id.encode() * 1000)
    samples = [{"order": "bare,step", "bare_s": 1.0, "step_s": 2.0}] * 2
    folder.add(cell | {"reason": None, "figures": {}}, samples, scratch)


def live(path: Path) -> None:
    """Begin or go on, until two cells are kept."""
    folder = RunFolder.resume(path, SETTINGS) if (path / "run.json").exists() else RunFolder(path, SETTINGS)
    try:
        for cell_id in IDS[:2]:
            if cell_id not in folder.finished:
                keep(folder, cell_id)
        folder.close()
    finally:
        folder._lock.release()  # as the system does when a process ends


def test_a_kill_at_any_step_of_writing_loses_nothing(tmp_path: Path) -> None:
    """Not at random: after every single call that changes the disk, in the first life of a run and in its second."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Mortal(10**9, patch)
        live(tmp_path / "whole")
    assert whole.steps > 30
    last_cells = -1
    for last in range(whole.steps):
        path = tmp_path / str(last)
        with pytest.MonkeyPatch.context() as patch:
            Mortal(last, patch)
            with pytest.raises(Dead):
                live(path)
        kept = whole_lines(path)
        assert len(kept) >= last_cells, "the longer it lived, the more is kept"
        last_cells = len(kept)
        if last % 3 == 0:
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Dead):
                Mortal(last // 3, patch)
                live(path)
            assert whole_lines(path)[: len(kept)] == kept
        live(path)
        assert whole_lines(path)[: len(kept)] == kept
        run = read_run(path)
        check_whole(path, run)
        assert [cell["id"] for cell in run.cells] == IDS[:2]
        assert run.samples.groupby("cell").size().to_dict() == dict.fromkeys(IDS[:2], 2)
        assert sorted(p.name for p in path.iterdir()) == ["cells.jsonl", "results", "run.json", "samples.parquet"]


# ---- the runner is stopped


def test_ctrl_c_ends_within_two_seconds_and_says_how_to_go_on(
    processes: ForkServerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, said = tmp_path / "my runs" / "first one", tmp_path / "said"
    out.parent.mkdir()
    behave = out.parent / "behave"
    behave.write_text("fork and hang")
    arguments = ["run", "--backend", "hooks", "--task", "ioi", "--model", "tiny-llama", "--out", str(out)]
    runner = processes.Process(target=command, args=(arguments, said))
    runner.start()
    until = time.monotonic() + 60
    while not any("hanging" in log.read_text() for log in out.glob(".*/log")):
        assert time.monotonic() < until, said.read_text() if said.exists() else "it did not start"
        time.sleep(0.02)
    assert runner.pid is not None
    start = time.monotonic()
    os.kill(runner.pid, signal.SIGINT)
    runner.join(20)
    took = time.monotonic() - start
    print(f"{took:.2f} s from Ctrl-C to the end")
    assert runner.exitcode == 130
    assert took < 2.0
    assert gone(out.parent, 0.1), "nor does anything that it started go on"
    text = said.read_text()
    assert "Traceback" not in text
    assert "the 0 cells that had finished are kept in" in text
    (told,) = [part for part in text.split("`") if "--resume" in part]
    behave.unlink()
    assert shlex.split(told)[0] == "crosslens"
    again = processes.Process(target=command, args=(shlex.split(told)[1:], said))
    again.start()
    again.join(60)
    assert again.exitcode == 0, said.read_text()
    assert {cell["status"] for cell in read_run(out).cells} == {"done", "right"}


# ---- two runs, one folder


def test_of_two_runs_that_begin_in_one_folder_at_once_one_is_refused(
    processes: ForkServerContext, planned: tuple[Plan, dict[str, Any]], tmp_path: Path
) -> None:
    plan, settings = planned
    path = tmp_path / "run"
    runners = [processes.Process(target=_race, args=(path, plan, settings, n)) for n in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(120)
        assert runner.exitcode == 0
    says = [(tmp_path / f"said-{n}").read_text() for n in range(3)]
    assert says.count("") == 1, says
    refused = [text for text in says if text]
    assert all("another process writes to" in text or "already holds a run" in text for text in refused)
    check_complete(path, plan)
    begun = [line for line in (tmp_path / "journal").read_text().splitlines() if line.startswith("begin")]
    assert len(begun) == len(set(begun)) == len(plan.cells())


def _race(path: Path, plan: Plan, settings: dict[str, Any], number: int) -> None:
    said = ""
    try:
        drive(path, plan, settings)
    except InputError as error:
        said = str(error)
    (path.parent / f"said-{number}").write_text(said)


# ---- the disk is full


@dataclass
class Disk:
    """A file system that can be filled."""

    path: Path
    fill: Callable[[int], None]
    """All but so many bytes."""
    free: Callable[[], None]


@pytest.fixture(params=["small", "limited"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A small file system in memory, where this user may mount one; and files of limited length."""
    path = tmp_path / "disk"
    path.mkdir()
    with (_mounted if request.param == "small" else _limited)(path) as disk:
        yield disk


@contextlib.contextmanager
def _mounted(path: Path) -> Iterator[Disk]:
    if sys.platform != "linux" or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("this user may mount no file system here")
    filler = path / "filler"

    def fill(left: int) -> None:
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(filler, max(0, filler.stat().st_size - left))

    yield Disk(path, fill, lambda: filler.unlink(missing_ok=True))
    filler.unlink(missing_ok=True)
    subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def _limited(path: Path) -> Iterator[Disk]:
    import resource

    was = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(left: int) -> None:
        grows = (path / "run" / "cells.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (grows + left // 4, was[1]))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)

    yield Disk(path, limit, lift)
    lift()


@pytest.mark.parametrize("left", [0, 4096, 8192, 12288, 16384, 20480])
def test_on_a_full_disk_what_is_finished_stays_and_the_error_says_how_to_go_on(left: int, disk: Disk) -> None:
    """Wherever in the writing of a cell the disk is full: at its samples, its results, or in the middle of its line."""
    path = disk.path / "run"
    folder = RunFolder(path, SETTINGS)
    keep(folder, "a")
    before = whole_lines(path)
    disk.fill(left)
    cell = {"id": "b", "kind": "backend", "backend": "hooks", "task": "t", "model": "m", "status": "right"}
    long = cell | {"reason": None, "figures": {}, "headline": "long " * 16000}  # a line of twenty pages
    samples = [{"order": "bare,step", "bare_s": 1.0, "step_s": 2.0}] * 2
    with pytest.raises(InputError) as refused:
        folder.add(long, samples, folder.scratch("b"))
    says = f"every finished cell is kept: make room on that disk, and `crosslens run --resume --out {path}` goes on"
    assert says in str(refused.value)
    assert (path / "cells.jsonl").read_bytes() == before[0] + b"\n", "not half a line"
    assert [c["id"] for c in read_run(path).cells] == ["a"]
    assert list(folder.finished) == ["a"]
    disk.free()
    folder.add(long, samples, folder.scratch("b"))
    keep(folder, "c")
    folder.close()
    run = read_run(path)
    check_whole(path, run)
    assert [c["id"] for c in run.cells] == IDS
    assert run.samples.groupby("cell").size().to_dict() == dict.fromkeys(IDS, 2)


def test_a_run_whose_disk_is_full_stops_and_goes_on_when_there_is_room(
    disk: Disk, planned: tuple[Plan, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, settings = planned
    monkeypatch.setattr(launch, "WORKER", STAND_IN)
    path = disk.path / "run"
    folder = RunFolder(path, settings)

    class Fills(Quiet):
        def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
            if len(folder.finished) == 4:
                disk.fill(0)

    with pytest.raises(InputError, match="make room on that disk, and `crosslens run --resume --out"):
        execute(plan, folder, Fills())
    folder.close()
    kept = whole_lines(path)
    assert 4 <= len(kept) < len(plan.cells())
    assert gone(disk.path)
    disk.fill(0)  # what the cells under way had written is gone
    with pytest.raises(InputError, match=r"--resume: .* cannot be written: .*(No space|too large)"):
        RunFolder.resume(path, settings)
    assert whole_lines(path) == kept
    disk.free()
    folder = RunFolder.resume(path, settings)
    assert execute(plan, folder, Quiet())
    folder.close()
    assert whole_lines(path)[: len(kept)] == kept
    check_complete(path, plan)


# ---- clocks, and a library that is missing in one worker


def test_a_clock_that_is_set_back_breaks_nothing(
    planned: tuple[Plan, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, settings = planned
    monkeypatch.setattr(launch, "WORKER", STAND_IN)
    begun, asked = datetime.now(UTC), 0

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            nonlocal asked
            asked += 1
            return begun - timedelta(hours=asked)

    monkeypatch.setattr(local, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: begun.timestamp() - 1e6 * (asked + 1))
    path = tmp_path / "run"
    folder = RunFolder(path, settings)
    short = replace(plan, tasks=plan.tasks[:1])
    execute(short, folder, Quiet())
    folder.close()
    earlier = (begun - timedelta(days=365)).isoformat(timespec="seconds")
    folder = RunFolder.resume(path, settings | {"started": earlier})
    assert execute(plan, folder, Quiet())
    folder.close()
    run = read_run(path)
    check_complete(path, plan)
    assert run.facts["resumed"] == [earlier]
    started = [cell["started"] for cell in run.cells]
    assert min(started) < run.facts["started"]
    assert started != sorted(started)
    assert all(0.0 < cell["seconds"] < 60.0 for cell in run.cells), "durations are of another clock"


def test_a_backend_that_is_missing_in_one_worker_is_recorded_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnsight is here, and its cell alone runs in a real worker, whose Python does not find it."""
    (tmp_path / "site" / "sitecustomize.py").parent.mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['nnsight'] = None\n")
    (tmp_path / "behave").write_text("real")
    monkeypatch.setattr(launch, "WORKER", STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    plan = replace(a_plan(repeats=1), backends=("nnsight", "hooks"), tasks=("ioi",))
    path = tmp_path / "run"
    folder = RunFolder(path, facts(plan))
    assert execute(plan, folder, Quiet()) is False
    folder.close()
    found = {cell["backend"]: cell for cell in read_run(path).cells}
    assert found["nnsight"]["status"] == "not-installed"
    assert "needs 'nnsight', which is not installed" in found["nnsight"]["reason"]
    assert {cell["status"] for name, cell in found.items() if name != "nnsight"} == {"done", "right"}
