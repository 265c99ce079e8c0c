"""The runner: a cell is judged before it is timed, and whatever happens to its process is a result."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import nn

from crosslens.adapters import CAPABILITIES, BackendNotInstalledError, InputError, Inspector, ModelError
from crosslens.benchmarks import plan as planning
from crosslens.benchmarks import worker
from crosslens.benchmarks.launch import Outcome, _died, _Watch, run_worker
from crosslens.benchmarks.plan import Plan, find_task, make_plan
from crosslens.benchmarks.progress import Show
from crosslens.benchmarks.run import execute, facts
from crosslens.benchmarks.store import RunFolder, read_run
from crosslens.benchmarks.tables import tables
from crosslens.benchmarks.timing import Sampling, time_blocks
from crosslens.tasks import load_model
from crosslens.tasks.base import Known, Progress, Result, Score, Size, Task

ROOT = Path(__file__).parent.parent
RUN = max((ROOT / "results").glob("*/run.json")).parent
"""The newest reference run."""


class Right(Task):
    """The residual stream after the first block: a task as small as one can be."""

    name: ClassVar[str] = "right"
    question: ClassVar[str] = "is it right?"
    source: ClassVar[str] = "this file"
    categories: ClassVar[str] = "none"
    data: ClassVar[str] = "eight token ids"
    known_on: ClassVar[tuple[str, ...]] = ("tiny-llama",)
    needs: ClassVar[tuple[str, ...]] = ("capture.residual",)

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> torch.Tensor:
        return torch.arange(3, 11)[None]

    def run(self, lens: Inspector, work: torch.Tensor, progress: Progress | None = None) -> Result:
        assert progress is not None
        progress(1, 1)
        return {"residual": lens.run(work, capture="blocks.0.resid_post")["blocks.0.resid_post"].double().numpy()}

    def reference(self, model: nn.Module, work: torch.Tensor, progress: Progress | None = None) -> Result:
        with torch.no_grad():
            hidden = model(work, output_hidden_states=True).hidden_states[1]
        return {"residual": hidden.double().numpy()}

    def score(self, result: Result, reference: Result, work: torch.Tensor, dtype: str) -> Score:
        error = float(np.abs(result["residual"] - reference["residual"]).max())
        return Score(error, error, 1.0, 100.0, 1e-6, right=error < 1e-6)

    def known(self, reference: Result, work: torch.Tensor) -> Known:
        size = reference["residual"].size
        return Known("it has figures", f"{size} figures", size > 0)

    def step(self, lens: Inspector, work: torch.Tensor) -> Callable[[], Any]:
        return lambda: lens.run(work, capture="blocks.0.resid_post")

    def bare(self, model: nn.Module, work: torch.Tensor) -> Callable[[], Any]:
        return torch.no_grad()(lambda: model(work))

    def table(self, result: Result, work: torch.Tensor) -> pd.DataFrame:
        return pd.DataFrame({"largest": [result["residual"].max()]})

    def headline(self, result: Result, work: torch.Tensor) -> str:
        return "the residual stream is there"


class Wrong(Right):
    """A backend's result is a little off."""

    def run(self, lens: Inspector, work: torch.Tensor, progress: Progress | None = None) -> Result:
        return {"residual": super().run(lens, work, progress)["residual"] + 0.01}


class Vacuous(Right):
    """Right, but so would nearly anything be."""

    def score(self, result: Result, reference: Result, work: torch.Tensor, dtype: str) -> Score:
        return replace(super().score(result, reference, work, dtype), effect=0.5)


class Unknown(Right):
    """Its reference does not show what is known."""

    def known(self, reference: Result, work: torch.Tensor) -> Known:
        return Known("the moon is made of cheese", "rock", holds=False)


class Unable(Right):
    """Needs what no backend has."""

    needs: ClassVar[tuple[str, ...]] = ("capture.residual", "attribute")


class Raises(Right):
    """The library raises in the middle."""

    def run(self, lens: Inspector, work: torch.Tensor, progress: Progress | None = None) -> Result:
        raise RuntimeError("the library gave up")


class NoReference(Right):
    """What it is compared with cannot be computed."""

    def reference(self, model: nn.Module, work: torch.Tensor, progress: Progress | None = None) -> Result:
        raise MemoryError


class Crashes(Right):
    """The process ends without a word."""

    def __init__(self) -> None:
        print("last words", flush=True)
        os._exit(3)


class Killed(Right):
    """As the system does when memory runs out."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Right):
    """Never ends, and has a child that does not either."""

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> torch.Tensor:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
        time.sleep(600)
        raise AssertionError("not reached")


def here(task: type[Task]) -> str:
    """How a worker, which is another process, finds a task of this file."""
    return f"tests.test_runner:{task.__name__}"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def a_job(task: type[Task], **more: Any) -> dict[str, Any]:
    job = {
        "id": "x",
        "kind": "backend",
        "backend": "hooks",
        "task": here(task),
        "model": "tiny-llama",
        "repeat": 1,
        "size": "smoke",
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "device": "cpu",
        "threads": 1,
        "seed": 0,
        "sampling": asdict(Sampling(pairs=4, most=4, seconds=5.0)),
        "reference": None,
    }
    return job | more


def in_this_process(task: type[Task], folder: Path, **more: Any) -> worker.Report:
    """What a worker would do, without its process."""
    reference = folder / "reference.npz"
    model, _ = load_model("tiny-llama")
    truth = Right().reference(model, torch.arange(3, 11)[None])
    np.savez(reference, residual=truth["residual"])
    report = worker.Report(folder)
    worker.backend(a_job(task, reference=str(reference), **more), report)
    return report


# ---- one cell


def test_a_right_result_is_timed_and_every_cost_is_measured(tmp_path: Path) -> None:
    report = in_this_process(Right, tmp_path)
    assert report.cell["status"] == "right"
    assert len(report.samples) == 4
    assert report.cell["timing"]["blocks"] == 4
    assert {tuple(sorted(sample["order"].split(","))) for sample in report.samples} == {("bare", "hooks", "step")}
    assert report.cell["version"] == torch.__version__
    assert report.cell["headline"] == "the residual stream is there"
    figures = report.cell["figures"]
    expected = {"import_s", "load_s", "bare_alone_s", "wrap_s", "first_call_s", "task_s", "close_s", "peak_bytes"}
    assert expected <= set(figures)
    assert all(figures[name] > 0 for name in expected)
    with np.load(tmp_path / "result.npz") as arrays:
        assert arrays["residual"].shape == (1, 8, 32)
    assert (tmp_path / "result.csv").read_text().startswith("largest\n")


@pytest.mark.parametrize(
    ("task", "status", "why"),
    [(Wrong, "wrong", "largest relative error 0.01"), (Vacuous, "vacuous", "0.5 times the noise")],
)
def test_a_result_that_is_not_right_is_never_timed(
    task: type[Task], status: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "time_blocks", lambda *_, **__: pytest.fail("it was timed"))
    report = in_this_process(task, tmp_path)
    assert report.cell["status"] == status
    assert why in report.cell["reason"]
    assert report.samples == []
    assert (tmp_path / "result.npz").exists(), "a wrong result is kept, to be looked at"


def test_what_a_backend_says_it_cannot_do_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "load_model", lambda *_, **__: pytest.fail("it was run"))
    report = worker.Report(tmp_path)
    worker.backend(a_job(Unable), report)
    assert report.cell["status"] == "unsupported"
    assert report.cell["reason"].startswith("attribute (notimpl): ")
    assert "capture.residual" not in report.cell["reason"]
    assert set(Unable.needs) <= set(CAPABILITIES)


def test_a_failure_leaves_the_model_closed_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="gave up"):
        in_this_process(Raises, tmp_path)
    report = worker.Report(tmp_path)
    with pytest.raises(RuntimeError):
        worker.backend(a_job(Raises), report)
    assert report.cell["stage"] == "running the task"
    assert "close_s" in report.cell["figures"]


# ---- one process


def launched(task: type[Task], folder: Path, timeout: float = 120.0, **more: Any) -> Outcome:
    return run_worker(a_job(task, **more), folder, timeout=timeout, follow=lambda *_: None)


def test_a_crash_is_a_result(tmp_path: Path) -> None:
    cell = launched(Crashes, tmp_path).cell
    assert cell["status"] == "crashed"
    assert "exit status 3" in cell["reason"]
    assert cell["log"] == ["last words"]


def test_a_kill_is_a_result(tmp_path: Path) -> None:
    cell = launched(Killed, tmp_path).cell
    assert (cell["status"], "SIGKILL" in cell["reason"]) == ("crashed", True)


def test_a_kill_for_want_of_memory_is_told_from_others() -> None:
    watch = _Watch(resident=812_000_000)
    status, reason = _died(watch, -9, 60.0, True)
    assert (status, reason) == (
        "out-of-memory",
        "killed by the system, which ran out of memory; it last held 812 MB",
    )
    assert _died(watch, -9, 60.0, False)[0] == "crashed"
    assert _died(watch, -11, 60.0, True) == (
        "crashed",
        "the process ended with SIGSEGV; it last held 812 MB",
    )


def test_a_process_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    stages: list[str] = []

    def follow(stage: str, done: int, total: int) -> None:
        stages.append(stage)

    timeout = 6.0
    for _ in range(4):  # until the limit is late enough for this machine to get to the hanging
        start = time.monotonic()
        outcome = run_worker(a_job(Hangs), tmp_path, timeout=timeout, follow=follow)
        if outcome.cell["stage"] == "preparing the data":
            break
        timeout *= 2
    assert time.monotonic() - start < timeout + 10
    assert outcome.cell["status"] == "timeout"
    assert outcome.cell["reason"].startswith(f"while preparing the data: stopped after {timeout:g} s")
    assert "preparing the data" in stages
    child = int(outcome.cell["log"][-1].split()[1])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_reference_must_show_what_is_known(tmp_path: Path) -> None:
    report = worker.Report(tmp_path)
    worker.reference(a_job(Unknown, kind="reference", backend=None), report)
    assert report.cell["status"] == "failed"
    assert "known: the moon is made of cheese; found: rock" in report.cell["reason"]
    report = worker.Report(tmp_path)
    worker.reference(a_job(Right, kind="reference", backend=None), report)
    assert report.cell["known"] == {"fact": "it has figures", "found": "256 figures", "holds": True}
    assert report.cell["status"] == "done"


def test_an_exception_is_a_result_with_its_traceback(tmp_path: Path) -> None:
    cell = launched(NoReference, tmp_path, kind="reference", backend=None).cell
    assert cell["status"] == "out-of-memory"
    assert cell["reason"] == "while computing the reference: MemoryError: "
    assert "raise MemoryError" in cell["traceback"]
    assert "finished" not in cell


# ---- a run


class Told(Show):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, str]] = []
        self.stages: set[str] = set()

    def start(self, cell: str) -> None:
        return None

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        self.stages.add(stage)

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self.finished.append((cell, status))


def a_plan(*tasks: type[Task], **more: Any) -> Plan:
    sampling = Sampling(pairs=4, most=4, seconds=5.0)
    plan = make_plan("smoke", backend=["hooks"], task=[here(task) for task in tasks])
    return replace(plan, sampling=sampling, threads=1, **more)


def test_a_run_goes_on_after_a_failure_and_keeps_every_cell(tmp_path: Path) -> None:
    plan, told = a_plan(Wrong, NoReference), Told()
    folder = RunFolder(tmp_path / "run", facts(plan))
    assert execute(plan, folder, told) is False
    folder.close()
    run = read_run(tmp_path / "run")
    assert sorted(cell["id"] for cell in run.cells) == sorted(run.facts["cells"])
    status = {(cell["task"].partition(":")[2], cell["backend"]): cell["status"] for cell in run.cells}
    assert status == {
        ("Wrong", None): "done",
        ("Wrong", "hooks"): "wrong",
        ("Wrong", "hooks (A/A)"): "wrong",
        ("NoReference", None): "out-of-memory",
        ("NoReference", "hooks"): "failed",
        ("NoReference", "hooks (A/A)"): "failed",
    }
    assert [s for _, s in told.finished] == [cell["status"] for cell in run.cells]
    assert {"loading the model", "timing"} & told.stages
    control = next(cell["id"] for cell in run.cells if cell["status"] == "done")
    assert set(run.samples["cell"]) == {control}, "a wrong result has no time, the control has"
    assert (tmp_path / "run" / "results" / f"{control}.npz").exists()
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]
    assert len(tables(run)) == 2


def test_cells_run_beside_one_another_on_cores_of_their_own(tmp_path: Path) -> None:
    plan = replace(a_plan(Right, Wrong), jobs=2)
    folder = RunFolder(tmp_path / "run", facts(plan))
    assert execute(plan, folder, Told()) is False
    folder.close()
    status = {(c["task"].partition(":")[2], c["kind"]): c["status"] for c in read_run(tmp_path / "run").cells}
    assert status[("Right", "backend")] == "right"
    assert status[("Wrong", "backend")] == "wrong"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Any], Path]:
    """A plan, its settings and the folder of a run of it."""
    plan, path = a_plan(Right, Vacuous), tmp_path_factory.mktemp("finished") / "run"
    settings = facts(plan)
    folder = RunFolder(path, settings)
    with pytest.MonkeyPatch.context() as patch:  # as the fixture above, which is set for each test anew
        patch.setenv("PYTHONPATH", str(ROOT))
        execute(plan, folder, Told())
    folder.close()
    return plan, settings, path


@pytest.mark.parametrize("cut", ["between cells", "within a line", "before a line"])
def test_a_run_that_was_cut_goes_on_and_loses_or_doubles_nothing(
    cut: str, finished: tuple[Plan, dict[str, Any], Path], tmp_path: Path
) -> None:
    plan, settings, kept = finished
    path = Path(shutil.copytree(kept, tmp_path / "run"))
    whole = read_run(path)
    lines = (path / "cells.jsonl").read_text().splitlines(keepends=True)
    last = whole.cells[-1]["id"]
    (path / "cells.jsonl").write_text("".join(lines[:-1]) + (lines[-1][:40] if cut == "within a line" else ""))
    if cut == "between cells":
        (path / "results" / f"{last}.npz").unlink()
        (path / f".{last}.half").mkdir()
    folder = RunFolder.resume(path, settings)
    assert set(folder.finished) == {cell["id"] for cell in whole.cells[:-1]}
    told = Told()
    assert execute(plan, folder, told) is False
    folder.close()
    assert len(told.finished) == 1
    again = read_run(path)
    assert [cell["id"] for cell in again.cells] == [cell["id"] for cell in whole.cells]
    assert sorted(again.samples["cell"].unique()) == sorted(whole.samples["cell"].unique())
    assert again.samples.groupby(["cell", "block"]).size().max() == 1
    assert len(again.facts["resumed"]) == 1
    assert not [p for p in path.iterdir() if p.name.startswith(".")]


def test_a_resumed_run_mixes_nothing_and_two_runs_share_no_folder(tmp_path: Path) -> None:
    plan, path = a_plan(Right), tmp_path / "run"
    folder = RunFolder(path, facts(plan))
    with pytest.raises(InputError, match="another process writes to"):
        RunFolder.resume(path, facts(plan))
    folder.close()
    other = facts(replace(plan, seed=7))
    other["environment"]["versions"]["torch"] = "0.1"
    with pytest.raises(InputError, match=r"arguments.seed: 0, now 7; environment.versions.torch: '.*', now '0.1'"):
        RunFolder.resume(path, other)
    with pytest.raises(InputError, match="holds no run; start one without --resume"):
        RunFolder.resume(tmp_path, facts(plan))
    assert Plan.of(read_run(path).facts["arguments"]) == plan


def test_a_stop_ends_every_process_and_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(a_plan(Right, Hangs), jobs=2, warm=False)  # the fork server stays for the next run
    folder = RunFolder(tmp_path / "run", facts(plan))
    told = Told()

    def stop(cell: str, status: str, *_: Any) -> None:
        told.finished.append((cell, status))
        raise KeyboardInterrupt

    monkeypatch.setattr(told, "finish", stop)
    before = {child.pid for child in psutil.Process().children(recursive=True)}  # such as another test's fork server
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execute(plan, folder, told)
    folder.close()
    assert len(read_run(tmp_path / "run").cells) == 1
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert time.monotonic() - start < 60


# ---- plans


def test_references_come_first_then_cells_in_an_order_drawn_from_the_seed() -> None:
    plan = make_plan("smoke", backend=["hooks"], task=["ioi", "characters"])
    plan = replace(plan, backends=tuple("abcdef"), repeats=3)
    cells = plan.cells()
    assert [cell.kind for cell in cells[:2]] == ["reference"] * 2
    assert {cell.kind for cell in cells[2:]} == {"backend"}
    assert len({cell.id for cell in cells}) == len(cells) == 2 + 2 * (6 + 1) * 3  # one of them under two names
    assert plan.cells() == cells
    other = replace(plan, seed=1).cells()
    assert other != cells
    assert sorted(cell.id for cell in other) == sorted(cell.id for cell in cells)
    in_order = sorted(cells[2:], key=lambda cell: cell.id)
    assert cells[2:] != in_order


def test_ids_are_file_names_that_differ_whatever_the_names() -> None:
    models = ("a/b", "a-b", "A-B", "a-b-2", "../..", "..")
    cells = replace(make_plan("smoke", backend=["hooks"], task=["ioi"]), models=models).cells()
    ids = [cell.id.lower() for cell in cells]
    assert len(set(ids)) == len(ids)
    assert all("/" not in cell_id and not cell_id.startswith(".") for cell_id in ids)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"suite": "smokey"}, "no suite 'smokey'; did you mean 'smoke'"),
        ({"backend": ["hoooks"]}, "no backend 'hoooks'; did you mean 'hooks'"),
        ({"task": ["iou"]}, "no task 'iou'; did you mean 'ioi'"),
        ({"task": ["no.such:Task"]}, "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ({"task": ["os:path"]}, "no subclass of"),
        ({"model": ["tiny-lama"]}, "did you mean tiny-llama"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"timeout": 0.0}, "--timeout is 0"),
        ({"timeout": float("nan")}, "--timeout is nan"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_name(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, ModelError), match=says):
        make_plan(**{"suite": "smoke", **arguments})


def test_a_missing_library_is_an_error_where_it_was_asked_for_and_a_skip_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(name: str) -> None:
        if name == "nnsight":
            raise BackendNotInstalledError("backend 'nnsight' needs it; pip install 'crosslens[nnsight]'")
        if name == "transformer_lens":
            raise AttributeError("broken by another library's new version")

    monkeypatch.setattr(planning, "load_backend", load)
    plan = make_plan("smoke")
    assert "transformer_lens" in plan.backends, "one that is broken runs, and its cells say how"
    assert "nnsight" not in plan.backends
    assert "pip install" in plan.skipped["nnsight"]
    with pytest.raises(BackendNotInstalledError, match="pip install"):
        make_plan("smoke", backend=["nnsight"])


def test_a_task_of_the_callers_own_is_found_by_its_class() -> None:
    assert isinstance(find_task(here(Right)), Right)
    assert find_task("ioi").name == "ioi"


# ---- clocks and memory


def test_peak_memory_of_a_part_is_its_own() -> None:
    """In a process of its own: in one that ran other tests, the allocator may hand out again what it kept of them."""
    code = """
import json, numpy as np
from crosslens.benchmarks.memory import PeakMemory, resident
memory = PeakMemory()
first = np.full(25_000_000, 1.0)  # 200 MB
whole = memory.whole()
del first
marked, before = memory.mark(), resident()
second = np.full(6_250_000, 1.0)  # 50 MB
print(json.dumps([marked, memory.since_mark() - before if marked else 0, memory.whole() - whole]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    marked, rise, forgotten = json.loads(done.stdout)
    if not marked:
        pytest.skip("this system cannot tell the peak of a part")
    assert 40e6 < rise < 70e6
    assert forgotten >= -5e6, "the peak before the mark is not forgotten"


def test_the_random_order_leaves_the_callers_random_state_alone() -> None:
    random.seed(5)
    expected = random.Random(5).random()
    make_plan("smoke", backend=["hooks"]).cells()
    time_blocks({"bare": lambda: None, "step": lambda: None}, Sampling(1, 1, 1.0), seed=0)
    assert random.random() == expected
