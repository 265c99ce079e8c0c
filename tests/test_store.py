"""A run's folder: what is written can be read back, and what is damaged says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crosslens.adapters import InputError
from crosslens.benchmarks.store import RunFolder, read_run, refuse_out, to_json

FACTS = {"arguments": {}, "environment": {}, "random_models": [], "cells": ["a", "b"]}
SAMPLES = [
    {"order": "bare,hooks,step", "bare_s": 0.5, "hooks_s": 0.625, "step_s": 0.75},
    {"order": "step,bare", "bare_s": 1.0, "step_s": 1.5},
]


def a_cell(name: str, **more: Any) -> dict[str, Any]:
    cell = {"id": name, "kind": "backend", "backend": "hooks", "task": "t", "model": "m", "status": "right"}
    return cell | {"figures": {}, **more}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run", FACTS)
    scratch = run.scratch("a")
    (scratch / "result.npz").write_bytes(b"arrays")
    run.add(a_cell("a"), SAMPLES, scratch)
    run.add(a_cell("b", error=float("nan")), [], run.scratch("b"))
    run.close()
    return run


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    run = read_run(folder.path)
    assert run.facts["cells"] == ["a", "b"]
    assert [cell["id"] for cell in run.cells] == ["a", "b"]
    assert run.samples["cell"].tolist() == ["a", "a"]
    assert run.samples["block"].tolist() == [0, 1]
    assert run.samples["step_s"].tolist() == [0.75, 1.5]
    assert run.samples["order"].tolist() == ["bare,hooks,step", "step,bare"]
    assert run.samples["hooks_s"].isna().tolist() == [False, True], "what was not timed has no time"
    assert (folder.path / "results" / "a.npz").read_bytes() == b"arrays"


def test_nothing_but_the_runs_own_files_is_left(folder: RunFolder) -> None:
    assert sorted(p.name for p in folder.path.iterdir()) == ["cells.jsonl", "results", "run.json", "samples.parquet"]


def test_each_line_is_strict_json_and_figures_that_are_no_numbers_survive(folder: RunFolder) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder.path / "cells.jsonl").read_text().splitlines()
    cells = [json.loads(line, parse_constant=refuse) for line in lines]
    assert str(float(cells[1]["error"])) == "nan"
    assert json.loads(to_json([float("inf"), (1.5, None)])) == ["inf", [1.5, None]]


def test_a_run_without_samples_is_whole(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", FACTS)
    run = read_run(tmp_path / "run")
    assert run.cells == []
    assert len(run.samples) == 0


# ---- folders that cannot be used


def test_new_and_empty_folders_can_be_used_and_looking_changes_nothing(tmp_path: Path) -> None:
    refuse_out(tmp_path)
    refuse_out(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_is(folder: RunFolder) -> None:
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for attempt in (lambda: refuse_out(folder.path), lambda: RunFolder(folder.path, FACTS)):
        with pytest.raises(InputError, match="already holds a run; name another folder"):
            attempt()
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not empty \(thesis\.tex"):
        refuse_out(tmp_path)


def test_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        refuse_out(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be made: .*file is a file"):
        refuse_out(tmp_path / "file" / "below")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="link"):
        refuse_out(tmp_path / "link")


def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as a user who may do anything
    with pytest.raises(InputError, match="no right to write"):
        refuse_out(tmp_path / "new")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses new folders")
def test_a_folder_that_the_system_refuses_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(Path("/proc/crosslens-run"), FACTS)


def test_a_folder_that_vanishes_is_an_input_error(folder: RunFolder) -> None:
    scratch = folder.scratch("c")
    (folder.path / "cells.jsonl").unlink()
    (folder.path / "cells.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot go on with the run in .*every finished cell is kept: see to that"):
        folder.add(a_cell("c"), [], scratch)


# ---- damage


def test_a_torn_line_is_named(folder: RunFolder) -> None:
    path = folder.path / "cells.jsonl"
    path.write_text(path.read_text() + '{"id": "c", "kind": "ba')
    with pytest.raises(InputError, match=r"cells\.jsonl, line 3, is no JSON \(torn: the run was stopped"):
        read_run(folder.path)


def test_a_damaged_line_in_the_middle_is_named_and_not_called_torn(folder: RunFolder) -> None:
    path = folder.path / "cells.jsonl"
    path.write_text("{]\n" + path.read_text())
    with pytest.raises(InputError, match=r"line 1, is no JSON: .*delete the line"):
        read_run(folder.path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "line 3, is no cell"),
        ('{"id": "c"}', "it has no backend, figures, files, kind, model"),
        ("", "line 3, is no JSON"),
    ],
)
def test_a_line_that_is_no_cell_is_named(folder: RunFolder, line: str, says: str) -> None:
    path = folder.path / "cells.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=says):
        read_run(folder.path)


def test_an_id_that_is_used_twice_is_named(folder: RunFolder) -> None:
    folder.add(a_cell("a"), [], folder.scratch("a"))
    with pytest.raises(InputError, match="line 3: a second cell with id 'a'"):
        read_run(folder.path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"run\.json is no JSON"),
        ("[]", "not the run.json of a run"),
        ('{"format": 99}', "format 99; this version reads 2"),
        ('{"format": 2}', "damaged: it has no arguments, cells, environment, random_models"),
    ],
)
def test_a_run_json_that_is_none_says_why(folder: RunFolder, content: str, says: str) -> None:
    (folder.path / "run.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_run(folder.path)


def test_missing_pieces_are_named(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no run: it has no run\.json"):
        read_run(tmp_path)
    (folder.path / "samples.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"samples\.parquet cannot be read as parquet"):
        read_run(folder.path)
    (folder.path / "samples.parquet").unlink()
    with pytest.raises(InputError, match=r"it has no samples\.parquet"):
        read_run(folder.path)
    (folder.path / "cells.jsonl").unlink()
    with pytest.raises(InputError, match=r"it has no cells\.jsonl"):
        read_run(folder.path)


def test_half_a_surrogate_pair_is_kept_as_its_escape() -> None:
    """As in an error of a library that cut a text in the middle."""
    text = to_json({"reason": "cut \ud83d"})
    assert text.encode() == b'{"reason": "cut \\\\ud83d"}'
