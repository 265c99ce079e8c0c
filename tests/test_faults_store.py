"""A run's folder that was edited by hand, copied in part or is of another version: errors name file, line and field."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters import InputError
from crosslens.benchmarks import environment as found_here
from crosslens.benchmarks import schema, store
from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.schema import FORMAT, SAMPLE_TYPES, CellLine, Environment, Facts, Known, Score, check
from crosslens.benchmarks.store import RunFolder, read_run, to_json

FACTS: dict[str, Any] = {
    "started": "2026-01-01T00:00:00+00:00",
    "arguments": {"seed": 0},
    "environment": {"source": "one", "git": {"commit": "c", "changed": False}, "versions": {"torch": "2"}},
    "random_models": [],
    "cells": ["a", "b"],
}
SCORE = {f: 0.5 for f in ("max_abs_error", "max_rel_error", "rank_agreement", "effect", "noise")} | {"right": True}


def a_cell(name: str, **more: Any) -> dict[str, Any]:
    cell = {"id": name, "kind": "backend", "backend": "hooks", "task": "t", "model": "m", "status": "right"}
    return cell | {"repeat": 1, "reason": None, "figures": {"task_s": 1.5, "peak_bytes": 7}, "score": SCORE} | more


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    folder = RunFolder(path, FACTS)
    for name in ("a", "b"):
        scratch = folder.scratch(name)
        (scratch / "result.npz").write_bytes(name.encode() * 10_000)
        (scratch / "result.csv").write_text("x\n1\n")
        folder.add(a_cell(name), [{"order": "bare,step", "bare_s": 1.0, "step_s": 2.0}] * 4, scratch)
    folder.close()
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def edit(run: Path, line: int, **fields: Any) -> None:
    """Change fields of a line of cells.jsonl; None removes one."""
    path = run / "cells.jsonl"
    lines = path.read_text().splitlines()
    cell = json.loads(lines[line - 1]) | fields
    lines[line - 1] = json.dumps({name: value for name, value in cell.items() if value is not ...})
    path.write_text("\n".join(lines) + "\n")


# ---- fields


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"status": "rihgt"}, r"field `status` is 'rihgt'; input should be 'right', 'done'"),
        ({"status": ...}, r"it has no status"),
        ({"kind": "both"}, r"field `kind` is 'both'"),
        ({"id": 7}, r"field `id` is 7; input should be a valid string"),
        ({"id": ""}, r"field `id` is ''"),
        ({"backend": ["hooks"]}, r"field `backend` is \['hooks'\]"),
        ({"repeat": 0}, r"field `repeat` is 0; input should be greater than or equal to 1"),
        ({"repeat": "1"}, r"field `repeat` is '1'; input should be a valid integer"),
        ({"repeat": True}, r"field `repeat` is True"),
        ({"figures": []}, r"field `figures` is \[\]; input should be a valid dictionary"),
        ({"figures": {"task_s": "fast"}}, r"field `figures.task_s` is 'fast'; input should be a valid number"),
        ({"figures": {"task_s": None}}, r"field `figures.task_s` is None"),
        ({"score": {**SCORE, "right": 1}}, r"field `score.right` is 1; input should be a valid boolean"),
        ({"score": {**SCORE, "noise": "1e-7"}}, r"field `score.noise` is '1e-7'"),
        ({"score": {"right": True}}, r"it has no score.effect, score.max_abs_error"),
        ({"known": {"fact": "f", "found": "g", "holds": "yes"}}, r"field `known.holds` is 'yes'"),
        ({"timing": {"blocks": 1.5}}, r"field `timing.blocks` is 1.5"),
        ({"log": ["one", 2]}, r"field `log.1` is 2"),
        ({"samples": -1}, r"field `samples` is -1"),
        ({"files": {"npz": 3}}, r"field `files.npz` is 3"),
        ({"seconds": "1 min"}, r"field `seconds` is '1 min'"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named_with_its_file_and_line(
    fields: dict[str, Any], says: str, run: Path
) -> None:
    edit(run, 2, **fields)
    with pytest.raises(InputError, match=rf"{re.escape(str(run))}/cells\.jsonl, line 2, is no cell: {says}"):
        read_run(run)


def test_figures_that_are_no_numbers_and_fields_of_ones_own_can_be_read(run: Path) -> None:
    edit(run, 1, figures={"task_s": "nan", "wrap_s": "-inf", "peak_bytes": 3}, mine={"note": "looked at this one"})
    assert read_run(run).cells[0]["mine"] == {"note": "looked at this one"}


@given(
    st.dictionaries(
        st.sampled_from(sorted(get_type_hints(CellLine))),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3),
    )
)
def test_whatever_a_line_holds_the_check_passes_it_or_says_what_is_wrong(fields: dict[str, Any]) -> None:
    cell = json.loads(to_json(a_cell("a", samples=0, files={}) | fields))
    try:
        check(CellLine, cell, "cells.jsonl, line 1", "no cell")
    except InputError as error:
        named = re.search(r"field `(\w+)", str(error)) or re.search(r"it has no (\w+)", str(error))
        assert named is not None
        assert named[1] in fields
    else:
        assert isinstance(cell["id"], str)
        assert isinstance(cell["status"], str)
        assert all(isinstance(v, int | float | str) for v in cell["figures"].values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cells": "all"}, r"field `cells` is 'all'"),
        ({"environment": {"memory_bytes": "25 GB"}}, r"field `environment.memory_bytes` is '25 GB'"),
        ({"environment": {"git": {"commit": 3}}}, r"field `environment.git.commit` is 3"),
        ({"arguments": None}, r"field `arguments` is None"),
        ({"resumed": [1]}, r"field `resumed.0` is 1"),
        ({"executor": "slurm"}, r"field `executor` is 'slurm'"),
    ],
)
def test_a_fact_that_is_not_what_it_should_be_is_named(fields: dict[str, Any], says: str, run: Path) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}, is damaged: {says}"):
        read_run(run)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (FORMAT + 1, f"has format {FORMAT + 1}; this version reads {FORMAT}: upgrade crosslens to read it"),
        (
            FORMAT - 1,
            f"has format {FORMAT - 1}; this version reads {FORMAT}: run it again, or read it with the crosslens",
        ),
        ("two", "has format 'two'"),
    ],
)
def test_a_folder_of_another_version_is_read_by_no_one(number: Any, says: str, run: Path) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for attempt in (lambda: read_run(run), lambda: RunFolder.resume(run, FACTS)):
        with pytest.raises(InputError, match=re.escape(says)):
            attempt()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_every_field_and_column_is_documented() -> None:
    said = set(re.findall(r"\w+", store.__doc__ or ""))
    for kind in (Facts, Environment, CellLine):
        assert set(get_type_hints(kind)) <= said, kind
    assert set(SAMPLE_TYPES) <= said
    for status in get_args(schema.Status):
        assert f'"{status}"' in (store.__doc__ or "")
    assert f"format {FORMAT}" in (store.__doc__ or "")


def test_the_schema_of_scores_is_that_of_the_tasks() -> None:
    from crosslens.tasks import base

    assert set(get_type_hints(Score)) == set(get_type_hints(base.Score))
    assert set(get_type_hints(Known)) == set(get_type_hints(base.Known))


# ---- samples


def changed(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = run / "samples.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop(columns="step_s"), "has no column step_s"),
        (lambda f: f.assign(step_s="slow"), "column step_s holds str, not float64"),
        (lambda f: f.assign(block=0.5), "column block holds float64, not int64"),
        (lambda f: f.assign(cell=range(8)), "column cell holds int64, not str"),
        (lambda f: f.assign(bare_s=-1.0), "row 0: bare_s is -1.0, less than no time"),
        (lambda f: f.assign(block=0), "has block 0 of cell 'a' twice"),
        (
            lambda f: f[f["cell"] == "a"],
            "has 0 samples of cell 'b', which had 4; copy the folder again, or delete line 2",
        ),
        (lambda f: f.iloc[:-1], "has 3 samples of cell 'b', which had 4"),
    ],
)
def test_samples_that_are_not_those_that_were_taken_say_so(
    change: Callable[[pd.DataFrame], pd.DataFrame], says: str, run: Path
) -> None:
    changed(run, change)
    with pytest.raises(InputError, match=re.escape(says)):
        read_run(run)


def test_samples_of_a_cell_that_has_no_line_are_left_out(run: Path) -> None:
    path = run / "cells.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert read_run(run).samples["cell"].unique().tolist() == ["a"]


# ---- copies that are not whole


def copied(run: Path, name: str, size: int | None) -> None:
    path = run / name
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        (
            "results/b.npz",
            None,
            r"results/b\.npz is missing; copy the folder again, or delete line 2 of .*cells\.jsonl",
        ),
        ("results/b.npz", 9_999, r"results/b\.npz is not what was written; copy the folder again, or delete line 2"),
        ("results/a.csv", 0, r"results/a\.csv is not what was written; copy the folder again, or delete line 1"),
        ("samples.parquet", None, r"it has no samples\.parquet; copy the folder again"),
        ("samples.parquet", 500, r"samples\.parquet cannot be read as parquet: .*copy the folder again"),
        ("samples.parquet", 0, r"samples\.parquet cannot be read as parquet"),
        ("cells.jsonl", None, r"it has no cells\.jsonl"),
        ("run.json", 100, r"run\.json is no JSON: .*copy the folder again"),
        ("run.json", 0, r"run\.json is no JSON"),
        ("run.json", None, r"holds no run; start one without --resume"),
    ],
)
def test_a_half_copied_folder_is_not_gone_on_with_and_stays_as_it_is(
    name: str, size: int | None, says: str, run: Path
) -> None:
    copied(run, name, size)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=says):
        RunFolder.resume(run, FACTS)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert not (run / "results").exists() or len(list((run / "results").iterdir())) >= 3


def test_what_an_error_says_to_do_works(run: Path) -> None:
    """Delete the line: its cell, and it alone, is to be run again."""
    copied(run, "results/b.npz", 10)
    path = run / "cells.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    folder = RunFolder.resume(run, FACTS)
    assert folder.finished == {"a": "right"}
    assert sorted(p.name for p in (run / "results").iterdir()) == ["a.csv", "a.npz"]
    folder.close()


def test_cells_without_run_json_are_not_overwritten(run: Path) -> None:
    copied(run, "run.json", None)
    with pytest.raises(InputError, match=r"holds the cells of a run without its run\.json"):
        RunFolder(run, FACTS)


def test_a_cell_that_the_run_does_not_plan_is_not_gone_on_with(run: Path) -> None:
    edit(run, 2, id="c")
    changed(run, lambda f: f.assign(cell=f["cell"].replace("b", "c")))
    with pytest.raises(InputError, match=r"cells\.jsonl, line 2: cell 'c' is none that run\.json names"):
        RunFolder.resume(run, FACTS)


def test_what_a_start_leaves_that_was_killed_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "results").mkdir(parents=True)
    for name in (".lock", "cells.jsonl", ".run.json.part"):
        (path / name).touch()
    RunFolder(path, FACTS).close()
    assert read_run(path).cells == []
    other = tmp_path / "other"
    (other / "results").mkdir(parents=True)
    (other / "results" / "mine.npz").touch()
    with pytest.raises(InputError, match="not empty"):
        RunFolder(other, FACTS)


# ---- what may differ when a run goes on


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"source": "other"}, "environment.source: 'one', now 'other'"),
        ({"versions": {"torch": "3"}}, "environment.versions.torch: '2', now '3'"),
        ({"governor": "powersave"}, "environment.governor: None, now 'powersave'"),
        ({"cpu": "another"}, "environment.cpu: None, now 'another'"),
        ({"gpus": [{"name": "one"}]}, "environment.gpus"),
        ({"variables": {"MKL_CBWR": "COMPATIBLE"}}, "environment.variables.MKL_CBWR"),
        ({"git": {"commit": "later", "changed": True}}, None),
        ({"git": None}, None),
        ({"packages": {"pytest": "9"}}, None),
        ({"load_average": [9.0, 9.0, 9.0]}, None),
    ],
)
def test_machines_versions_and_settings_are_not_mixed(change: dict[str, Any], refused: str | None, run: Path) -> None:
    now = FACTS | {"environment": FACTS["environment"] | change, "started": "2026-02-01T00:00:00+00:00"}
    if refused is None:
        RunFolder.resume(run, now).close()
        return
    with pytest.raises(InputError, match=re.escape(refused)):
        RunFolder.resume(run, now)
    RunFolder.resume(run, FACTS).close()  # and a refusal leaves no lock


# ---- what it takes to repeat a run


def test_run_json_has_what_it_takes_to_repeat_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_HOME", "/a/folder/of/this/machine")
    found = environment(["nnsight", "transformer-lens", "no-such-library"])
    check(Environment, found, "environment", "damaged")
    assert set(found) == set(get_type_hints(Environment))
    core = {"crosslens", "torch", "transformers", "tokenizers", "numpy", "nnsight", "transformer-lens"}
    assert core <= {name for name, version in found["versions"].items() if version}
    assert found["versions"]["no-such-library"] is None
    assert {"torch", "pytest", "jax"} <= set(found["packages"]), "all that is installed"
    assert found["packages"]["numpy"] == found["versions"]["numpy"]
    assert found["variables"]["OMP_NUM_THREADS"] == "3"
    assert "CUDA_HOME" not in found["variables"], "no paths of this machine"
    assert re.fullmatch(r"[0-9a-f]{64}", found["source"])
    assert found["cores"]["at_hand"] >= 1
    assert found["memory_bytes"] > 1e8


def test_the_digest_of_the_source_changes_with_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        for folder in ("adapters", "benchmarks", "tasks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").write_text(text if folder == "tasks" else "")
            (tmp_path / folder / "notes.txt").write_text(str(len(digests)))
        monkeypatch.setattr(found_here, "find_spec", lambda name: _Spec([str(tmp_path / name.partition(".")[2])]))
        digests.append(found_here.source_digest.__wrapped__())
    assert digests[0] == digests[2] != digests[1]


class _Spec:
    def __init__(self, places: list[str]) -> None:
        self.submodule_search_locations = places


def test_the_governor_and_turbo_are_read_where_the_system_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_here, "_CPUS", tmp_path)
    assert found_here.governor() is None
    for cpu in ("cpu0", "cpu1"):
        (tmp_path / cpu / "cpufreq").mkdir(parents=True)
        (tmp_path / cpu / "cpufreq" / "scaling_governor").write_text("performance\n")
    assert found_here.governor() == "performance"
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate" / "no_turbo").write_text("1\n")
    (tmp_path / "cpu1" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    assert found_here.governor() == "performance, powersave (no turbo)"


def test_memory_is_what_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n")
    monkeypatch.setattr(found_here, "_CGROUPS", (limit, tmp_path / "nowhere"))
    machine = found_here.memory_bytes()
    limit.write_text("100000000\n")
    assert found_here.memory_bytes() == 100_000_000 < machine
