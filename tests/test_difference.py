"""Two runs beside one another: found by place, judged by interval."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crosslens.benchmarks.cli import app
from crosslens.benchmarks.difference import Figure, cells, counted, differences, figures

from .test_runner import RUN

FIRST = """# Page

## costs

| backend | size | ratio | s | result |
| --- | --: | --: | --: | --- |
| hooks | 1 | 1.00 [0.90, 1.10] | 2.0 | right |
| hooks | 2 | 1.10 [1.05, 1.20] | 3.0 | right |
| a\\|b | 1 | **2.00 [1.90, 2.10]** | 1,000 | `right` |
| gone | 1 | | | |
"""
SECOND = FIRST
for old, new in (
    ("1.00 [0.90, 1.10]", "1.20 [1.08, 1.30]"),
    ("2.00 [1.90, 2.10]", "3.00 [2.90, 3.10]"),
    ("3.0 |", "4.0 |"),
    ("| gone | 1 | | | |", "| come | 1 | | | wrong |"),
    ("2.0 | right", "2.0 | wrong"),
    ("| ratio |", "| ratio [95 % within one process] |"),
):
    SECOND = SECOND.replace(old, new)


def test_a_figure_goes_by_heading_row_and_column() -> None:
    found = cells(FIRST)
    assert found["costs", "hooks, 2", "ratio"] == "1.10 [1.05, 1.20]"
    assert found["costs", "a|b, 1", "ratio"] == "2.00 [1.90, 2.10]"
    assert found["costs", "a|b, 1", "s"] == "1,000"
    assert len(found) == 4 * 3


def test_verdicts() -> None:
    by_place = {(f.row, f.column): f.verdict for f in figures("p", FIRST, SECOND)}
    assert by_place["hooks, 1", "ratio"] == "within"
    assert by_place["hooks, 2", "ratio"] == "same"
    assert by_place["a|b, 1", "ratio"] == "beyond"
    assert by_place["hooks, 2", "s"] == "unknown"
    assert by_place["hooks, 1", "result"] == "changed"
    assert by_place["come, 1", "result"] == "new"
    assert by_place["a|b, 1", "result"] == "same"
    assert Figure("p", "t", "r", "c", "1.5", "1.00 [0.90, 1.10]").verdict == "beyond"
    assert Figure("p", "t", "r", "c", "1.05", "1.00 [0.90, 1.10]").verdict == "within"
    assert Figure("p", "t", "r", "c", "86 (84)", "86 (85)").verdict == "unknown"
    assert Figure("p", "t", "r", "c", "86 (84)", "raises").verdict == "changed"
    assert Figure("p", "t", "r", "c", "agrees: 1.1 [1, 1.2] times", "differs: 1.1 [1, 1.2] times").verdict == "changed"
    assert [f.verdict for f in figures("p", FIRST, None)] == ["missing"]
    assert counted(figures("p", FIRST, SECOND))["p"]["beyond"] == 1


def test_the_committed_run_against_itself_and_against_a_changed_copy(tmp_path: Path) -> None:
    same = differences(RUN, RUN)
    assert len(same) > 1000
    assert {figure.verdict for figure in same} == {"same"}
    copy = tmp_path / "run"
    shutil.copytree(RUN, copy)
    kept = json.loads((copy / "studies" / "mistakes.json").read_text())
    assert kept["outcomes"][0]["kind"] == "refused"
    kept["outcomes"][0]["kind"] = "silent"
    (copy / "studies" / "mistakes.json").write_text(json.dumps(kept))
    done = CliRunner().invoke(app, ["diff", str(RUN), str(copy), "--json"])
    assert done.exit_code == 1
    changed = [each for each in json.loads(done.stdout) if each["verdict"] != "same"]
    assert {each["page"] for each in changed} == {"mistakes"}
    assert "changed" in {each["verdict"] for each in changed}
    done = CliRunner().invoke(app, ["diff", str(RUN), str(RUN)])
    assert done.exit_code == 0, done.output
    assert "0 of " in done.output
    assert "made differently" not in done.output
    facts = json.loads((copy / "run.json").read_text())
    kept, facts["arguments"]["threads"] = facts["arguments"]["threads"], 64
    (copy / "run.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(app, ["diff", str(RUN), str(copy)])
    assert f"The runs were made differently:\n  arguments.threads: {kept} | 64\n" in done.output


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    from crosslens.adapters import InputError

    with pytest.raises(InputError, match="holds no run"):
        differences(RUN, tmp_path)
