"""CONTRIBUTING.md is followed: its blocks run, what it names is there, and who leaves out a step is told which."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from crosslens.adapters import InputError, Inspector, SiteError, Support
from crosslens.adapters.conformance import conformance_checks
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.plan import Plan, Point
from crosslens.benchmarks.cli import app
from crosslens.benchmarks.plan import find_task
from crosslens.benchmarks.worker import Report
from crosslens.tasks import Recorder, Task
from crosslens.tasks.engine import KPIS, figures

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MINE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for line in PAGE.splitlines() if line.startswith("    ")]


# ---- what it names


def test_every_file_that_it_names_is_there() -> None:
    spans = re.findall(r"`([\w./-]+?(?:\.(?:py|toml|txt)|/))`", PAGE)
    named = {span for span in spans if "NAME" not in span and "DATE" not in span and "PAGE" not in span}
    assert len(named) > 30
    tracked = {path.relative_to(ROOT).as_posix() for top in ("adapters", "tasks", "benchmarks", "tests")
               for path in (ROOT / top).rglob("*")}  # fmt: skip
    tracked |= {f"results/{path.name}/studies" for path in (ROOT / "results").iterdir()}
    found = {span for span in named if any(f"/{path}".endswith("/" + span.rstrip("/")) for path in tracked)}
    assert not {span for span in named - found if not (ROOT / span).exists()}


@pytest.mark.parametrize("target", sorted({c.split()[1] for c in COMMANDS if c.startswith("make ")}))
def test_every_target_is_one(target: str) -> None:
    done = subprocess.run(["make", "--question", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "No rule to make target" not in done.stderr
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(".venv/bin/crosslens check") and " -k " in c])
def test_the_kit_runs_as_it_says(command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert re.search(r"nnsight: \d+ passed", done.output)


# ---- a backend: a name and a `_forward`


class Plain(Inspector):
    """All that the page asks of a backend that goes by modules, and what it lacks."""

    name: ClassVar[str] = "plain"
    unsupported: ClassVar[dict[str, Support]] = {
        name: Support("never", "it goes by modules, and the softmax is in one") for name in
        ("capture.pattern", "edit.pattern", "gradients.pattern")
    }  # fmt: skip

    def _forward(self, plan: Plan) -> Any:
        handles = []
        for probe in plan.probes():
            assert isinstance(probe.key, Point)
            module, side = self.model.get_submodule(probe.key.path), probe.key.side
            if side == "output":
                handles.append(module.register_forward_hook(lambda _, args, out, probe=probe: probe(out)))
            elif side == "input":
                before = lambda _, args, probe=probe: (probe(args[0]), *args[1:])  # noqa: E731
                handles.append(module.register_forward_pre_hook(before))
        try:
            return self.model(*plan.args, **plan.kwargs)
        finally:
            for handle in handles:
                handle.remove()


def test_a_name_and_a_forward_are_a_backend() -> None:
    checks = [check for check in conformance_checks(Plain, ["llama"]) if "llama-float64-left" in check.id]
    outcomes = {check.id: check.run() for check in checks}
    assert len(outcomes) > 100
    assert not {name: outcome for name, outcome in outcomes.items() if not outcome.good}
    assert Plain.supports()["capture.native"].state == "notimpl", "it gives users no addresses of its own"


def test_what_a_backend_does_not_call_is_refused() -> None:
    class Careless(Plain):
        """Does not say that it cannot reach the softmax."""

        unsupported: ClassVar[dict[str, Support]] = {}

    with Careless(tiny_model("llama")[0]) as lens, pytest.raises(SiteError, match="did not run in this forward"):
        lens.run(torch.tensor([[3, 4, 5]]), capture="blocks.1.attn.pattern")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("capture.patern", "unsupported of Misspelled: .*'capture.patern'; did you mean 'capture.pattern'"),
        ("edit.pattern@lama", "'edit.pattern@lama' names none of llama, gpt2"),
    ],
)
def test_a_gap_that_no_capability_has_is_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        type("Misspelled", (Plain,), {"unsupported": {name: Support("never", "it cannot")}})


# ---- a task


def _module(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str] = lambda text: text) -> str:
    """The page's block as a module that can be imported; its task's name on the command line."""
    assert MINE is not None
    module = ModuleType("of_the_page")
    exec(change(MINE[1]), vars(module))
    monkeypatch.setitem(sys.modules, "of_the_page", module)
    return "of_the_page:Mine"


def test_its_task_is_one_with_every_method_as_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = find_task(_module(monkeypatch))
    for name in Task.__abstractmethods__:
        want, found = (list(inspect.signature(getattr(of, name)).parameters.values()) for of in (Task, type(mine)))
        assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in want], name


def test_an_empty_run_is_told_what_a_result_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = find_task(_module(monkeypatch))
    report = Report.__new__(Report)
    report.folder, report.cell = tmp_path, {}
    with pytest.raises(InputError, match="task 'mine' gives NoneType; a result is a mapping, name -> array"):
        report.keep(mine, mine.run(None, None), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("    def headline", "    def hedline", "lacks headline: crosslens.tasks.Task says what each is"),
        ("    needs =", "    need =", "lacks needs"),
        ('"capture.residual"', '"capture.residul"', "needs: .*'capture.residul'; did you mean 'capture.residual'"),
    ],
)
def test_a_task_that_lacks_something_is_refused_before_anything_runs(
    old: str, new: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _module(monkeypatch, lambda text: text.replace(old, new))
    with pytest.raises(InputError, match=says):
        find_task(name)


def test_a_task_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forgot_its_import.py").write_text("class Mine(Task): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"NameError: name 'Task' is not defined; .* installed or on PYTHONPATH"):
        find_task("forgot_its_import:Mine")
    with pytest.raises(InputError, match=r"no task 'forgot_its_import'; .* your own is package.module:Class"):
        find_task("forgot_its_import")


# ---- a key figure


@pytest.mark.parametrize("name", [name for name in KPIS if name != "entropy"])
def test_a_recorder_has_every_key_figure_alone(name: str) -> None:
    """A figure that somebody adds is right there too, without being named there."""
    x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    model = nn.Identity()
    with Recorder(model, "module::output", kpis=name, parameters=False) as recorder, recorder.step():
        model(x)
    (found,) = recorder.table()["value"]
    want = float(figures(x[None])[0, KPIS.index(name)])
    assert np.isclose(found, want, rtol=1e-12), name


def test_a_recorder_has_a_key_figure_that_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in `KPIS` and one in `derive`; what the page does not name needs no change."""
    from crosslens.tasks import engine, recording_figures

    assert KPIS == recording_figures.KPIS
    derive = engine.derive

    def more(kept: np.ndarray, distributions: bool) -> np.ndarray:
        found = derive(kept, distributions)
        return np.concatenate([found, found[:, [KPIS.index("kurtosis")]] / 3 + 1], axis=1)

    monkeypatch.setattr(recording_figures, "KPIS", (*KPIS, "tails"))
    monkeypatch.setattr(recording_figures, "KNOWN", (*recording_figures.KNOWN, "tails"))
    monkeypatch.setattr(recording_figures, "derive", more)
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model = nn.Identity()
    with Recorder(model, "module::output", kpis="tails", parameters=False) as recorder, recorder.step():
        model(x)
    z = ((x - x.mean()) / x.std(correction=0)).numpy()
    assert recorder.table()["value"].tolist() == pytest.approx([(z**4).mean() / 3], rel=1e-12)
