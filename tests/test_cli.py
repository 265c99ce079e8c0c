"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from rich.console import Console

from crosslens.adapters import CAPABILITIES, BackendNotInstalledError
from crosslens.adapters.conformance import Outcome as CheckOutcome
from crosslens.adapters.conformance.outcomes import load, save
from crosslens.benchmarks import cli, progress
from crosslens.benchmarks.launch import Follow, Outcome
from crosslens.benchmarks.matrix import matrix, summary
from crosslens.benchmarks.store import read_run

from .test_runner import ROOT, Hangs, Right, here

COMMANDS = ("models", "backends", "tasks", "check", "run", "tables")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def crosslens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`crosslens ARGUMENTS`, in this process, from a folder of its own, on a terminal of 100 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["crosslens", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        seen = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, seen.out, seen.err)

    return call


def refused(ended: Ended, says: str) -> None:
    """The command ended with status 2 and one line on stderr."""
    assert ended.status == 2, ended
    assert ended.out == ""
    assert says in ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("crosslens: ")


# ---- what there is


def test_help_teaches_with_examples(crosslens: Call) -> None:
    ended = crosslens("--help")
    assert ended.status == 0
    assert "crosslens run --suite smoke" in ended.out
    for command in COMMANDS:
        assert command in ended.out
        assert crosslens(command, "--help").status == 0
    assert "crosslens check nnsight" in crosslens("check", "--help").out
    assert "--backend hooks --backend nnsight" in crosslens("run", "-h").out


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys, crosslens.benchmarks.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_the_distributions(crosslens: Call) -> None:
    assert crosslens("--version").out == f"crosslens {version('crosslens')}\n"


def test_models_are_listed(crosslens: Call) -> None:
    names = [entry["name"] for entry in json.loads(crosslens("models", "--json").out)]
    assert {"smollm2-135m", "tiny-llama", "tiny-gpt2", "tiny-neox"} <= set(names)
    shown = crosslens("models").out
    assert all(name in shown for name in names)
    assert "134,515,008" in shown


def test_tasks_are_listed(crosslens: Call) -> None:
    found = json.loads(crosslens("tasks", "--json").out)
    assert {"ioi", "characters"} <= {entry["name"] for entry in found}
    assert all(entry["question"] and entry["source"] and entry["needs"] for entry in found)
    assert "characters" in crosslens("tasks").out


def test_backends_are_listed_with_what_they_can_do(crosslens: Call) -> None:
    found = {entry["name"]: entry for entry in json.loads(crosslens("backends", "--json").out)}
    assert {"hooks", "nnsight", "transformer_lens"} <= set(found)
    hooks = found["hooks"]
    assert (hooks["library"], hooks["version"], hooks["problem"]) == ("torch", version("torch"), "")
    assert set(hooks["outcomes"]["capabilities"]) == set(CAPABILITIES)
    shown = crosslens("backends").out
    assert all(capability in shown for capability in CAPABILITIES)
    assert "hooks, attribute (notimpl): " in shown, "what is not supported has its reason"


def test_the_feature_table_has_a_reason_for_every_cell_that_is_no_yes(crosslens: Call) -> None:
    found = json.loads(crosslens("backends", "--format", "json").out)
    text = crosslens("backends", "--format", "md").out
    assert text.count("\n| ") >= len(CAPABILITIES), text
    for backend in found:
        for capability, proof in backend["outcomes"]["capabilities"].items():
            supported = proof["state"] == "supported"
            assert proof["passed" if supported else "xfailed"] > 0, (backend["name"], capability)
            assert supported or proof["reason"], (backend["name"], capability)
            assert supported or proof["reason"] in text, (backend["name"], capability)


def test_the_readme_shows_what_came_of_the_kit() -> None:
    assert summary(matrix()) in (ROOT / "README.md").read_text(encoding="utf-8"), summary(matrix())


def test_the_feature_table_is_latex_too(crosslens: Call) -> None:
    text = crosslens("backends", "--format", "latex").out
    table = text[: text.index(r"\end{tabular}")]
    columns = table[: table.index(r"\midrule")].count("&") + 1
    rows = [line for line in table.splitlines() if line.endswith(r"\\") and "texttt" in line]
    assert len(rows) == len(CAPABILITIES)
    assert all(row.count("&") + 1 == columns for row in rows)
    assert not re.search(r"(?<!\\)[_%#]", table), "what LaTeX takes for a command is written out"


def test_outcomes_of_ones_own_are_shown_instead_of_those_that_are_shipped(crosslens: Call, tmp_path: Path) -> None:
    kept = load("hooks")
    assert kept is not None
    save(replace(kept, passed=123456), tmp_path)
    assert "123456" in crosslens("backends", "--outcomes", tmp_path).out
    (tmp_path / "hooks.json").write_text('{"schema": 99}')
    refused(crosslens("backends", "--outcomes", tmp_path), "hooks.json")
    refused(crosslens("check", "hooks", "-k", "padding", "--save", tmp_path), "whole kit")


def test_a_backend_that_is_not_installed_is_listed_with_what_to_install(
    crosslens: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, "crosslens.benchmarks.matrix.load_backend")
    entry = json.loads(crosslens("backends", "--json").out)[0]
    assert entry["version"] is None
    assert "pip install 'crosslens[nnsight]'" in entry["problem"]
    assert "pip install 'crosslens[nnsight]'" in crosslens("backends").out


def missing(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def load(name: str) -> None:
        raise BackendNotInstalledError(f"backend {name!r} needs it; pip install 'crosslens[nnsight]'")

    monkeypatch.setattr(where, load)


# ---- check


@dataclass(frozen=True)
class FakeCheck:
    """A conformance check with a set outcome."""

    id: str
    status: Any

    capability = "capture.residual"

    def run(self) -> CheckOutcome:
        return CheckOutcome(self.status, f"seen at {self.id}")


@pytest.fixture
def fake_checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the kit: `statuses` decide the outcomes; the families that it was asked for are appended."""
    asked: list[Any] = ["passed", "xfailed"]

    def checks(name: str, families: Any = "all") -> list[FakeCheck]:
        statuses = list(asked)
        asked.append(families)
        return [FakeCheck(f"right/{number}", status) for number, status in enumerate(statuses)]

    monkeypatch.setattr("crosslens.benchmarks.checking.conformance_checks", checks)
    return asked


def test_check_ends_well_where_every_check_is_as_declared(crosslens: Call, fake_checks: list[Any]) -> None:
    ended = crosslens("check", "hooks")
    assert ended.status == 0
    assert "hooks: 1 passed, 1 xfailed" in ended.out
    assert "capture.residual" in ended.out


@pytest.mark.parametrize("status", ["failed", "xpassed"])
def test_check_lists_what_failed_and_ends_with_status_1(crosslens: Call, fake_checks: list[Any], status: str) -> None:
    fake_checks.append(status)
    ended = crosslens("check", "hooks")
    assert ended.status == 1
    assert f"{status} right/2\n  seen at right/2" in ended.out
    assert "seen at right/0" not in ended.out
    assert "Traceback" not in ended.err


def test_check_prints_json(crosslens: Call, fake_checks: list[Any]) -> None:
    fake_checks.append("failed")
    ended = crosslens("check", "hooks", "--json")
    found = json.loads(ended.out)
    assert ended.status == 1
    assert found["summary"] == {"passed": 1, "failed": 1, "xfailed": 1, "xpassed": 0}
    assert found["checks"][2] == {
        "id": "right/2",
        "capability": "capture.residual",
        "status": "failed",
        "message": "seen at right/2",
    }


def test_check_can_be_narrowed(crosslens: Call, fake_checks: list[Any]) -> None:
    assert "hooks: 1 passed" in crosslens("check", "hooks", "-k", "t/0").out
    del fake_checks[2:]
    crosslens("check", "hooks", "--model", "tiny-neox", "--model", "tiny-llama")
    assert fake_checks[2] == ["gpt_neox", "llama"]


def test_check_refuses_what_is_not_there(crosslens: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(crosslens("check", "hoks"), "no backend 'hoks'; did you mean 'hooks'?")
    refused(crosslens("check", "hooks", "--model", "tiny-lama"), "did you mean 'tiny-llama'?")
    refused(crosslens("check", "hooks", "--model", "smollm2-135m"), "no tiny model 'smollm2-135m'")
    refused(crosslens("check", "hooks", "-k", "nothing-of-that"), "has 'nothing-of-that' in its id; such an id is")
    missing(monkeypatch, "crosslens.adapters.conformance.load_backend")
    refused(crosslens("check", "nnsight"), "pip install 'crosslens[nnsight]'")


def test_the_real_kit_runs_from_the_command_line(crosslens: Call) -> None:
    ended = crosslens("check", "hooks", "--model", "tiny-gpt2", "-k", "right/logits", "--json")
    found = json.loads(ended.out)
    assert ended.status == 0
    assert found["summary"]["passed"] == len(found["checks"]) > 0


# ---- run, with real processes


def test_a_run_writes_prints_and_can_be_rendered_again(crosslens: Call, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    ended = crosslens("run", "--suite", "smoke", "--backend", "hooks", "--task", here(Right), "--out", out)
    assert ended.status == 0, ended
    assert "Finding: the residual stream is there" in ended.out
    assert "tiny-llama has random weights" in ended.out
    assert "hooks · tests.test_runner:Right on tiny-llama: right" in ended.err
    assert "[3/3] hooks" in ended.err
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    label = "tests-test_runner-Right.tiny-llama"
    assert names == {
        "run.json",
        "cells.jsonl",
        "samples.parquet",
        *(
            f"results/{label}.{cell}.{end}"
            for cell in ("reference", "hooks.1", "hooks-again.1")
            for end in ("npz", "csv")
        ),
        *(f"tables/{name}.{end}" for name in (label, "summary") for end in ("md", "csv")),
    }
    run = read_run(out)
    assert run.samples.groupby("cell").size().tolist() == [12, 12, 12]
    timed = run.samples[~run.samples["cell"].str.endswith("reference")]
    assert (timed[["bare_s", "hooks_s", "step_s"]] > 0).all(axis=None), "every block has all three"
    assert len(set(timed["order"])) > 2, "in an order of its own"
    assert (run.samples[["bare_s", "step_s"]] > 0).all(axis=None)
    assert run.facts["arguments"]["suite"] == "smoke"
    assert {"python", "cpu", "cores", "load_average", "git", "memory_bytes"} <= set(run.facts["environment"])

    before = {path.name: path.read_bytes() for path in (out / "tables").iterdir()}
    again = crosslens("tables", out)
    assert again.status == 0
    assert again.out == ended.out, "the same tables, from the folder alone"
    files = [f"  {out}/tables/{name}.{end}\n" for name in (label, "summary") for end in ("md", "csv")]
    assert ended.out.endswith("The tables are in\n" + "".join(files))
    assert {path.name: path.read_bytes() for path in (out / "tables").iterdir()} == before
    assert (
        crosslens("tables", out, "--format", "md").out.encode() == before[f"{label}.md"] + b"\n" + before["summary.md"]
    )
    figures = list(csv.DictReader(io.StringIO(crosslens("tables", out, "--format", "csv").out)))
    assert [row["ratio"] for row in figures] == [
        row["ratio"]
        for name in (label, "summary")
        for row in csv.DictReader(io.StringIO(before[f"{name}.csv"].decode()))
    ]
    assert json.loads(crosslens("tables", out, "--format", "json").out)[0]["rows"][2]["result"] == "right"
    assert crosslens("tables", out, "--json").out == crosslens("tables", out, "--format", "json").out
    assert r"\toprule" in crosslens("tables", out, "--format", "latex").out

    whole = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused(crosslens("run", "--suite", "smoke", "--backend", "hooks", "--out", out), "already holds a run")
    refused(crosslens("tables", out, "--format", "xlsx"), "no format 'xlsx'")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == whole


def test_ctrl_c_stops_the_worker_and_keeps_what_was_finished(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "crosslens.benchmarks.cli", "run", "--suite", "smoke", "--backend", "hooks"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runner = subprocess.Popen(
        [*command, "--task", here(Hangs), "--out", str(out)], env=env, stderr=subprocess.PIPE, text=True,
        # what a shell starts in the background ignores Ctrl-C, and so would what these tests start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        child = _child_of_the_hanging_worker(out, runner)
        runner.send_signal(signal.SIGINT)
        _, err = runner.communicate(timeout=60)
    finally:
        runner.kill()
    assert runner.returncode == 130
    assert "the 0 cells that had finished are kept" in err
    assert "Traceback" not in err
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert sorted(path.name for path in out.iterdir()) == ["cells.jsonl", "results", "run.json", "samples.parquet"]


def _child_of_the_hanging_worker(out: Path, runner: subprocess.Popen[str]) -> int:
    """Wait until the worker hangs; the process that it has started."""
    for _ in range(1200):
        for log in out.glob(".*/log"):
            line = log.read_text()
            if line.startswith("child") and line.endswith("\n"):
                return int(line.split()[1])
        assert runner.poll() is None, "the run ended before its cell hung"
        time.sleep(0.1)
    raise AssertionError("the worker did not start")


# ---- run, with workers that are not started


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replaces the worker processes: kind of cell -> its status; the reference is `done`."""
    statuses = {"reference": "done", "backend": "right"}

    def run_worker(job: Mapping[str, Any], folder: Path, *, follow: Follow, **_: Any) -> Outcome:
        follow("working", 1, 2)
        status = statuses[job["kind"]]
        if status == "interrupt":
            raise KeyboardInterrupt
        np.savez(folder / "result.npz", x=np.zeros(1))
        cell: dict[str, Any] = {"status": status, "reason": None, "figures": {}, "seconds": 1.0, "version": "1.0"}
        return Outcome(cell, [{"order": "bare,hooks,step", "bare_s": 1.0, "hooks_s": 1.0, "step_s": 1.1}] * 3)

    monkeypatch.setattr("crosslens.benchmarks.executors.local.run_worker", run_worker)
    return statuses


def smoke(*more: str | Path) -> list[str | Path]:
    tasks = () if "--task" in more else ("--task", "ioi", "--task", "characters")
    return ["run", "--suite", "smoke", "--backend", "hooks", *tasks, *more]


@pytest.mark.parametrize(
    ("status", "exit_status"),
    [("right", 0), ("unsupported", 0), ("wrong", 1), ("vacuous", 1), ("failed", 1), ("crashed", 1), ("timeout", 1)],
)
def test_the_exit_status_says_whether_there_are_findings(
    crosslens: Call, workers: dict[str, str], status: str, exit_status: int
) -> None:
    workers["backend"] = status
    assert crosslens(*smoke("--out", "out")).status == exit_status


def test_run_prints_json_alone_on_stdout(crosslens: Call, workers: dict[str, str]) -> None:
    found = json.loads(crosslens(*smoke("--out", "out", "--json")).out)
    assert found["out"] == "out"
    assert [table["task"] for table in found["tables"]] == ["ioi", "characters", "all"]
    assert [row["backend"] for row in found["tables"][0]["rows"]] == ["bare (control)", "hooks (A/A)", "hooks"]
    assert found["tables"][0]["rows"][2]["ratio"] == pytest.approx({"value": 1.1, "low": 1.1, "high": 1.1})


def test_every_name_may_be_given_more_than_once(crosslens: Call, workers: dict[str, str]) -> None:
    more = ["--model", "tiny-llama", "--model", "tiny-gpt2", "--task", "ioi", "--task", "ioi", "--repeats", "2"]
    assert crosslens(*smoke("--out", "out", *more)).status == 0
    cells = read_run(Path("out")).cells
    assert len(cells) == 2 + 2 * 2 * 2  # references; two names on two models, twice
    assert len({cell["id"] for cell in cells}) == 10


def test_without_out_the_folder_is_named_after_the_time(crosslens: Call, workers: dict[str, str]) -> None:
    assert crosslens(*smoke()).status == 0
    (made,) = Path("runs").iterdir()
    assert made.name[:2] == "20"
    assert (made / "run.json").exists()


def test_an_interrupt_keeps_the_cells_before_it(crosslens: Call, workers: dict[str, str]) -> None:
    workers["backend"] = "interrupt"
    ended = crosslens(*smoke("--out", "out"))
    assert ended.status == 130
    assert "the 2 cells that had finished are kept in out; `crosslens tables out`" in ended.err
    assert "`crosslens run --resume --out out` goes on" in ended.err
    assert crosslens("tables", "out").status == 0
    workers["backend"] = "right"
    assert crosslens("run", "--resume", "--out", "out").status == 0
    assert len(read_run(Path("out")).cells) == 6


def test_resume_takes_no_other_settings(crosslens: Call, workers: dict[str, str]) -> None:
    refused(crosslens("run", "--resume"), "--resume needs --out")
    refused(crosslens("run", "--resume", "--out", "nowhere"), "it has no run.json")
    assert crosslens(*smoke("--out", "out")).status == 0
    refused(crosslens("run", "--resume", "--out", "out", "--task", "ioi"), "leave out --task")
    refused(crosslens("run", "--resume", "--out", "out", "--seed", "0"), "leave out --seed")
    refused(crosslens(*smoke("--out", "out")), "go on with it by --resume")


def test_a_resumed_run_may_have_more_processes_of_each_cell_and_studies(
    crosslens: Call, workers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr("crosslens.benchmarks.commands.run_studies", lambda names, *_: done.extend(names) or True)
    assert crosslens(*smoke("--out", "out")).status == 0
    before = Path("out/cells.jsonl").read_bytes()
    assert crosslens("run", "--resume", "--out", "out", "--repeats", "3", "--study", "residue").status == 0
    after = Path("out/cells.jsonl").read_bytes()
    assert after.startswith(before)
    run = read_run(Path("out"))
    assert run.facts["arguments"]["repeats"] == 3
    assert run.facts["arguments"]["studies"] == done == ["residue"]
    ids = [cell["id"] for cell in run.cells]
    assert sorted(ids) == sorted(run.facts["cells"])
    assert len(ids) == len(set(ids))
    assert {cell["repeat"] for cell in run.cells if cell["kind"] == "backend"} == {1, 2, 3}
    refused(crosslens("run", "--resume", "--out", "out", "--repeats", "2"), "this run has 3, and what it has is kept")
    refused(crosslens("run", "--resume", "--out", "out", "--study", "residu"), "there is no study 'residu'")


def test_a_backend_of_the_default_set_that_is_missing_is_skipped_aloud(
    crosslens: Call, workers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch, "crosslens.benchmarks.plan.load_backend")
    refused(crosslens(*smoke("--out", "out")), "pip install 'crosslens[nnsight]'")
    assert not Path("out").exists()
    ended = crosslens("run", "--suite", "smoke", "--task", "ioi", "--out", "out")
    assert "nnsight is skipped: " in ended.err
    assert "nnsight was skipped: " in ended.out


# ---- progress


def test_on_a_terminal_there_is_a_bar_for_the_cells_and_one_for_the_cell() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with progress.show(console, 2) as told:
        assert isinstance(told, progress.Bars)
        told.start("hooks · ioi")
        told.follow("hooks · ioi", "running the task", 7, 20)
        told._bars.refresh()
        told.finish("hooks · ioi", "crashed", "the process ended with [SIGSEGV]", 1.25)
        told._bars.refresh()
    text = screen.getvalue()
    assert "hooks · ioi: running the task" in text
    assert "7/20" in text
    assert "1/2" in text
    assert "hooks · ioi: crashed, 1.2 s: the process ended with [SIGSEGV]" in text


def test_elsewhere_there_are_plain_lines() -> None:
    screen = io.StringIO()
    with progress.show(Console(file=screen, width=40), 2) as told:
        told.start("hooks · ioi")
        told.follow("hooks · ioi", "running the task", 7, 20)
        told.finish("hooks · ioi", "failed", "a reason that is longer than a line of this console", 3.0)
    assert screen.getvalue().splitlines() == [
        "[1/2] hooks · ioi ...",
        "[1/2] hooks · ioi: failed, 3.0 s: a reason that is longer than a line of this console",
    ]


def test_the_time_left_is_of_cells_that_run_as_many_as_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    pace = progress.Pace(13)
    assert pace.seconds() is None
    pace.start("cannot")
    pace.finish("cannot", 0.0)
    assert pace.seconds() is None
    pace.start("a")
    pace.start("b")
    now = 100.0
    pace.finish("a", 100.0)
    assert pace.seconds() == pytest.approx((11 * 100 - 100) / 2)  # b has run as long as a cell takes
    pace.start("c")
    now = 140.0
    assert pace.seconds() == pytest.approx((11 * 100 - 100 - 40) / 2)
    assert str(pace) == "about 8 min left"
    for name in "bc":
        pace.finish(name, 100.0)
    for i in range(8):
        pace.finish(str(i), 0.0)
    assert pace.seconds() == pytest.approx(100.0)  # the last one has no other beside it


def test_one_at_a_time_that_ends_after_the_next_has_started_is_still_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("crosslens.benchmarks.progress.time.monotonic", lambda: now)
    pace = progress.Pace(4)
    pace.start("a")
    for ended, begins in ("ab", "bc"):
        now += 100.0
        pace.start(begins)
        pace.finish(ended, 100.0)
    assert pace.seconds() == pytest.approx(200.0)


# ---- wrong usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "smok"], "no suite 'smok'; did you mean 'smoke'?"),
        (["--suite", "smoke", "--backend", "hook"], "no backend 'hook'; did you mean 'hooks'?"),
        (["--suite", "smoke", "--task", "oii"], "no task 'oii'; did you mean 'ioi'?"),
        (["--suite", "smoke", "--model", "tiny-gpt"], "did you mean tiny-gpt2"),
        (["--suite", "smoke", "--model", "./nowhere"], "nowhere"),
        (["--suite", "smoke", "--repeats", "0"], "--repeats is 0"),
        (["--suite", "smoke", "--timeout", "-1"], "--timeout is -1"),
        (["--suite", "smoke", "--device", "gpu"], "--device is 'gpu'; it must be cpu, cuda"),
        (["--suite", "smoke", "--device", "cuda:999"], "--device cuda:999: PyTorch"),
    ],
)
def test_run_refuses_before_any_work(crosslens: Call, workers: dict[str, str], arguments: list[str], says: str) -> None:
    refused(crosslens("run", *arguments, "--out", "out"), says)
    assert not Path("out").exists()


def test_run_refuses_a_folder_that_is_no_model(crosslens: Call, workers: dict[str, str]) -> None:
    Path("empty").mkdir()
    refused(crosslens(*smoke("--model", "empty", "--out", "out")), "empty is no model folder")
    assert not Path("out").exists()


def test_run_refuses_folders_that_it_cannot_use(crosslens: Call, workers: dict[str, str]) -> None:
    Path("file").write_text("mine")
    refused(crosslens(*smoke("--out", "file")), "--out file is a file")
    refused(crosslens(*smoke("--out", "file/below")), "file is a file")
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("mine")
    refused(crosslens(*smoke("--out", "full")), "not empty (thesis.tex")
    assert Path("file").read_text() == Path("full/thesis.tex").read_text() == "mine"
    assert len(list(Path("full").iterdir())) == 1


def test_tables_refuses_what_is_no_run(crosslens: Call, workers: dict[str, str]) -> None:
    refused(crosslens("tables", "nowhere"), "no folder nowhere")
    Path("empty").mkdir()
    refused(crosslens("tables", "empty"), "empty holds no run: it has no run.json")
    crosslens(*smoke("--out", "out"))
    with Path("out/cells.jsonl").open("a") as file:
        file.write('{"id": "torn')
    refused(crosslens("tables", "out"), "cells.jsonl, line 7, is no JSON (torn")


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["nonsense"], ["run", "--repeats", "many"], ["check"], ["tables"]]
)
def test_wrong_usage_is_status_2(crosslens: Call, arguments: list[str]) -> None:
    assert crosslens(*arguments).status == 2


def test_an_error_that_is_no_mistake_of_the_users_is_shown_in_full(
    crosslens: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(as_json: bool) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("crosslens.benchmarks.listing.list_models", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        crosslens("models")
