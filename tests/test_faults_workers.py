"""Whatever a worker does, it is a result, it ends, and so does all that it has started."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from crosslens.benchmarks import launch, reaper, warm
from crosslens.benchmarks.launch import Outcome, run_worker

from .drivers import STAND_IN, gone, still_running


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WORKER", STAND_IN)


def behaving(behave: str, path: Path, timeout: float = 30.0, **more: Any) -> Outcome:
    """What is made of a worker that behaves so; its scratch is `path/run/cell`."""
    folder = path / "run" / "cell"
    folder.mkdir(parents=True)
    job = {"id": "x", "kind": "backend", "threads": 1, "behave": behave}
    return run_worker(job, folder, timeout=timeout, follow=lambda *_: None, **more)


@pytest.mark.parametrize(
    ("behave", "status", "says"),
    [
        ("segfault", "crashed", "while running the task: the process ended with SIGSEGV"),
        ("exit 0", "crashed", "while running the task: the process ended with exit status 0"),
        ("exit 3", "crashed", "while running the task: the process ended with exit status 3"),
        ("exit 1 when done", "right", "the process ended with exit status 1 after its work was done"),
        ("hang", "timeout", "while running the task: stopped after 1 s, the limit of a cell (--timeout)"),
        ("stop", "timeout", "while running the task: stopped after 1 s, the limit of a cell (--timeout)"),
        ("fill the address space", "crashed", "while running the task: the process ended with exit status 1"),
        ("close its output", "right", ""),
    ],
)
def test_however_a_worker_ends_it_is_a_result(behave: str, status: str, says: str, tmp_path: Path) -> None:
    outcome = behaving(behave, tmp_path, timeout=1.0 if status == "timeout" else 30.0)
    cell = outcome.cell
    assert cell["status"] == status
    assert (cell["reason"] or "").startswith(says)
    assert len(outcome.samples) == (3 if status == "right" else 0)
    if status != "right":
        assert "last words" in cell["log"]
    if behave == "segfault":
        assert any("stand_in.py" in line and "in main" in line for line in cell["log"]), "the log says where"
    if behave == "fill the address space":
        assert cell["log"][-1] == "MemoryError"
    assert gone(tmp_path)


@pytest.mark.parametrize("behave", ["fork", "fork and hang"])
def test_children_end_with_their_worker_whatever_session_they_are_in(behave: str, tmp_path: Path) -> None:
    alive: list[int] = []

    def look() -> None:
        while len(still_running(tmp_path)) < 5 and len(alive) < 400:  # the reaper, the worker and its three
            alive.append(1)
            time.sleep(0.02)

    if behave == "fork":
        outcome = behaving(behave, tmp_path)
        assert (outcome.cell["status"], outcome.cell["reason"]) == ("right", None)
    else:
        watching = threading.Thread(target=look)
        watching.start()
        outcome = behaving(behave, tmp_path, timeout=3.0)
        watching.join()
        assert len(alive) < 400, "they were there"
        assert outcome.cell["status"] == "timeout"
        assert "hanging" in outcome.cell["log"]
    assert still_running(tmp_path) == [], "at once: nothing is left when the cell has its outcome"


def test_a_stop_ends_a_worker_and_its_children_in_less_than_two_seconds(tmp_path: Path) -> None:
    stop, stopped = threading.Event(), 0.0

    def follow_children() -> None:
        nonlocal stopped
        for _ in range(1000):
            if len(still_running(tmp_path)) >= 5:
                break
            time.sleep(0.02)
        stopped = time.monotonic()
        stop.set()

    watching = threading.Thread(target=follow_children)
    watching.start()
    with pytest.raises(InterruptedError):
        behaving("fork and hang", tmp_path, timeout=60.0, stop=stop)
    took = time.monotonic() - stopped
    watching.join()
    assert still_running(tmp_path) == []
    assert took < 2.0


@pytest.mark.parametrize("behave", ["print", "print one line"])
def test_a_hundred_megabytes_of_output_are_cut_on_disk_and_never_in_memory(behave: str, tmp_path: Path) -> None:
    largest, me = 0, psutil.Process()
    ended = threading.Event()

    def look() -> None:
        nonlocal largest
        while not ended.is_set():
            logs = list((tmp_path / "run").glob("cell/log*"))
            largest = max(largest, sum(log.stat().st_size for log in logs if log.exists()))
            time.sleep(0.005)

    watching = threading.Thread(target=look)
    watching.start()
    before = me.memory_info().rss
    outcome = behaving(behave, tmp_path, timeout=60.0)
    grown = me.memory_info().rss - before
    ended.set()
    watching.join()
    assert outcome.cell["status"] == "right"
    assert 1_000_000 < largest <= 2 * reaper._CAP
    assert grown < 20e6
    lines = launch._last_lines(tmp_path / "run" / "cell" / "log")
    assert sum(map(len, lines)) < 20_000
    if behave == "print":
        assert lines[-1] == "last of all"


def test_texts_of_a_cell_are_of_a_length_to_be_read(tmp_path: Path) -> None:
    cell = behaving("long reason", tmp_path).cell
    assert cell["status"] == "failed"
    assert len(cell["reason"]) < 4_200
    assert "characters ..." in cell["reason"]
    assert len(cell["traceback"]) < 20_200


def test_a_worker_that_takes_more_than_its_share_is_stopped_before_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_LEAST_LEFT", 2.0)  # as if the machine had none left at any time
    cell = behaving("eat", tmp_path, memory=500e6).cell
    assert cell["status"] == "out-of-memory"
    assert "stopped while the machine had next to no memory left; it last held" in cell["reason"]
    assert "more than half its share of 500 MB" in cell["reason"]
    assert gone(tmp_path)
    again = tmp_path / "again"
    assert behaving("", again, memory=5e9).cell["status"] == "right", "one that holds less goes on"


@pytest.mark.skipif(not reaper.LINUX, reason="other systems have no such score")
def test_where_memory_runs_out_the_system_kills_the_cell_first(tmp_path: Path) -> None:
    assert behaving("say its score", tmp_path).cell["log"][-2:] == ["1000", ""]
    assert Path("/proc/self/oom_score_adj").read_text() != "1000\n", "the runner is not offered"


def test_cells_that_start_at_once_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that forks is started with settings of its own, which several threads ask for at a time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    started: list[str] = []

    class Server:
        def ensure_running(self) -> None:
            started.append(os.environ["OMP_NUM_THREADS"] + os.environ["MKL_NUM_THREADS"])
            time.sleep(0.001)

    class Refusing:
        def set_forkserver_preload(self, names: list[str]) -> None: ...

        def Pipe(self, *, duplex: bool) -> None:  # as multiprocessing calls it
            raise OSError("no more of them")

    def start() -> None:
        for _ in range(50):
            with pytest.raises(OSError, match="no more of them"):
                warm.start({}, Path(), {})

    monkeypatch.setattr(warm, "forkserver", Server())
    monkeypatch.setattr(warm.multiprocessing, "get_context", lambda method: Refusing())
    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == ["11"] * 200
    assert dict(os.environ) == before


def test_a_process_that_cannot_be_started_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WORKER", ("/nowhere/python",))
    cell = behaving("", tmp_path).cell
    assert cell["status"] == "crashed"
    assert any("/nowhere/python cannot be started" in line for line in cell["log"])
    monkeypatch.setattr(launch, "REAPER", ("/nowhere/python",))
    with pytest.raises(OSError, match="no process can be started for a cell"):
        behaving("", tmp_path / "again")


def test_a_full_disk_is_no_outcome_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", _refuse)
    with pytest.raises(OSError, match="No space left"):
        behaving("exit 3", tmp_path)
    assert gone(tmp_path)


def _refuse(path: Path, data: bytes) -> int:
    raise OSError(28, "No space left on device", str(path))


def test_what_the_reaper_keeps_of_a_log_is_its_end(tmp_path: Path) -> None:
    log = reaper.Log(str(tmp_path / "log"))
    for number in range(40_000):
        log.write(f"{number:099d}\n".encode())
    held = [(tmp_path / name).stat().st_size for name in ("log.old", "log")]
    assert reaper._CAP < sum(held) <= 2 * reaper._CAP
    text = (tmp_path / "log.old").read_text() + (tmp_path / "log").read_text()
    numbers = [int(line) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 40_000)), "without a gap"
