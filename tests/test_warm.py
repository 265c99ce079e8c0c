"""Forked workers: as isolated, watched and ended as those that are started anew."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch

from crosslens.benchmarks.launch import Outcome, run_worker
from crosslens.benchmarks.plan import make_plan
from crosslens.benchmarks.warm import can_fork
from crosslens.tasks.base import Size

from .test_runner import Crashes, Hangs, Killed, Right, a_job

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system cannot fork")


class Looks(Right):
    """Prints what its process is like, and leaves it changed."""

    touched: ClassVar[bool] = False

    def prepare(self, model: torch.nn.Module, tokenizer: Any, *, size: Size) -> torch.Tensor:
        server = psutil.Process().parent().parent()  # type: ignore[union-attr]  # the reaper's parent forks
        print("pid", os.getpid(), "threads", torch.get_num_threads(), threading.active_count())
        print("server", server.pid if server else None, server.num_threads() if server else None)
        print("environment", os.environ["OMP_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"])
        print("touched", Looks.touched, "nnsight" in sys.modules, float(torch.rand(1)))
        Looks.touched = True
        return super().prepare(model, tokenizer, size=size)


class Segfaults(Right):
    """As a broken extension does."""

    def prepare(self, model: torch.nn.Module, tokenizer: Any, *, size: Size) -> torch.Tensor:
        import ctypes

        ctypes.string_at(0)
        raise AssertionError("not reached")


def forked(task: type[Right], folder: Path, timeout: float = 120.0, **more: Any) -> Outcome:
    job = a_job(task, kind="reference", backend=None, **more) | {"task": f"{task.__module__}:{task.__name__}"}
    return run_worker(job, folder, timeout=timeout, follow=lambda *_: None, warm=True)


def printed(folder: Path) -> dict[str, list[str]]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def test_each_cell_has_a_process_of_its_own_in_which_nothing_is_left_of_another(tmp_path: Path) -> None:
    found = []
    for name, threads in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        outcome = forked(Looks, tmp_path / name, threads=threads)
        assert outcome.cell["status"] == "done", outcome.cell
        assert 3 <= len(outcome.samples) <= 4, "a machine with much else to do takes fewer"
        found.append(printed(tmp_path / name))
    one, two = found
    assert one["pid"][0] != two["pid"][0]
    assert one["server"][0] == two["server"][0] != str(os.getpid())
    assert one["server"][1] == "1", "a process with other threads must not fork"
    assert (one["pid"][2], two["pid"][2]) == ("1", "2"), "each computes with its own number of threads"
    assert (one["environment"], two["environment"]) == (["1", "false"], ["2", "false"])
    assert one["touched"] == two["touched"], "the same state, random numbers included"
    assert one["touched"][:2] == ["False", "False"], "no backend is there before its cell"


@pytest.mark.parametrize(
    ("task", "status", "says"),
    [
        (Crashes, "crashed", "exit status 3"),
        (Killed, "crashed", "SIGKILL"),
        (Segfaults, "crashed", "SIGSEGV"),
    ],
)
def test_however_a_forked_process_ends_it_is_a_result(
    task: type[Right], status: str, says: str, tmp_path: Path
) -> None:
    cell = forked(task, tmp_path).cell
    assert cell["status"] == status
    assert says in cell["reason"]
    if task is Crashes:
        assert cell["log"] == ["last words"]
    if task is Segfaults:
        assert any("Segmentation fault" in line for line in cell["log"]), "it is said where"


def test_a_forked_process_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    start = time.monotonic()
    outcome = forked(Hangs, tmp_path, timeout=15.0)
    assert time.monotonic() - start < 40
    assert outcome.cell["status"] == "timeout"
    child = int(printed(tmp_path)["child"][0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_runner_that_tells_it_to_stop_is_obeyed(tmp_path: Path) -> None:
    stop = threading.Event()
    follow: Callable[[str, int, int], None] = lambda stage, *_: stop.set() if stage == "preparing the data" else None  # noqa: E731
    job = a_job(Hangs, kind="reference", backend=None)
    with pytest.raises(InterruptedError):
        run_worker(job, tmp_path, timeout=120.0, follow=follow, stop=stop, warm=True)
    child = int(printed(tmp_path)["child"][0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_only_the_smoke_suite_forks() -> None:
    plans = {
        suite: make_plan(suite, backend=["hooks"], task=["ioi"], model=["tiny-llama"])
        for suite in ("smoke", "default", "full")
    }
    assert {suite: plan.warm for suite, plan in plans.items()} == {"smoke": True, "default": False, "full": False}
