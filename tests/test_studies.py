"""Studies of a run: run in their own process, kept once, rendered from what was measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crosslens.adapters import InputError
from crosslens.benchmarks import studies
from crosslens.benchmarks.plan import make_plan
from crosslens.benchmarks.studies import STUDIES, pages, run_study, write_pages

from .test_runner import RUN


def test_the_full_suite_has_all_of_them_unless_it_is_narrowed() -> None:
    assert make_plan("full").studies == tuple(STUDIES)
    assert make_plan("full", backend=["hooks"]).studies == ()
    assert make_plan("smoke", study=["residue", "residue"]).studies == ("residue",)
    with pytest.raises(InputError, match="no study 'residu'; there are idioms"):
        make_plan("smoke", study=["residu"])


def test_a_study_runs_once_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if "crosslens.benchmarks.idioms" in command:
            Path(command[-1]).write_text("page")
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(studies.subprocess, "run", run)
    assert run_study("idioms", tmp_path / "studies") is None, "findings are no error"
    assert run_study("idioms", tmp_path / "studies") is None
    assert len(calls) == 1
    assert run_study("residue", tmp_path / "studies") == "the process ended with 3 and left no page"


@pytest.mark.parametrize("name", list(STUDIES))
def test_kept_pages_are_what_their_measurements_render_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    kept = f"{name}{STUDIES[name].kept}"
    (tmp_path / "studies" / kept).write_bytes((RUN / "studies" / kept).read_bytes())
    (written,) = write_pages(tmp_path)
    assert written.read_text() == (RUN / "studies" / f"{name}.md").read_text()


def test_a_damaged_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "residue.json").write_text("{")
    with pytest.raises(InputError, match=r"residue.json cannot be read"):
        pages(tmp_path)
    (tmp_path / "studies" / "residue.json").write_text(json.dumps({"uses": 1}))
    with pytest.raises(InputError, match=r"residue.json cannot be read"):
        pages(tmp_path)


def test_every_study_is_a_program() -> None:
    for name in STUDIES:
        where = Path(studies.__file__).parent
        assert (where / f"{name}.py").exists() or (where / name / "__main__.py").exists()
