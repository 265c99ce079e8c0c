"""The folder of a recording: it survives kills, full disks and damage, and says what is missing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from torch import nn

from crosslens.adapters.errors import InputError
from crosslens.tasks import recording_store
from crosslens.tasks.recorder import Recorder, RecordingWarning
from crosslens.tasks.recording import COLUMNS, Recording


def _run(recorder: Recorder, model: nn.Module, steps: int) -> None:
    for number in range(steps):
        with recorder.step("ab"[number % 2]) as step:
            out = model(torch.full((2, 3), float(number)))
            step.loss("l", out.sum())
            step.scalar("lr", 0.1 * number)
            if number == 1:
                step.note("half way")
            out.sum().backward()


def _made(path: Path, steps: int = 6, **options: Any) -> Recorder:
    model = nn.Linear(3, 2)
    with Recorder(model, "module::*", out=path, flush_every=2, **options) as recorder:
        _run(recorder, model, steps)
    return recorder


def test_what_is_read_is_what_was_recorded(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    kept = Recorder(model, "module::*")
    _run(kept, model, 6)
    written = _made(tmp_path / "r")
    read = Recording.load(tmp_path / "r")
    assert read.complete
    assert read.problems == []
    assert read.steps["step"].tolist() == list(range(6))
    assert read.steps["category"].tolist() == list("ababab")
    assert read.steps["notes"].tolist() == [[], ["half way"], [], [], [], []]
    assert tuple(read.table().columns) == COLUMNS
    assert read.table().equals(written.table())
    scalars = read.table(["scalar"])
    assert scalars["value"].tolist() == [0.1 * n for n in range(6)]  # exactly
    shape = kept.table()[["kind", "site", "kpi", "step", "category"]].sort_values(["kind", "site", "kpi", "step"])
    again = read.table()[["kind", "site", "kpi", "step", "category"]].sort_values(["kind", "site", "kpi", "step"])
    assert shape.reset_index(drop=True).equals(again.reset_index(drop=True))


def test_the_files_are_parquet_and_json_and_as_documented(tmp_path: Path) -> None:
    _made(tmp_path / "r")
    files = sorted(path.name for path in (tmp_path / "r").iterdir())
    assert files == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet", "recording.json"]
    state = json.loads((tmp_path / "r" / "recording.json").read_text())
    assert state["complete"] is True
    assert {"schema", "versions", "sites", "kpis", "model", "problems", "parts"} <= set(state)
    part = parquet.read_table(tmp_path / "r" / files[0])
    assert part.column_names == [*recording_store.KEYS, *state["kpis"], "value"]
    for column in part.column_names:
        assert f"{column}" in (recording_store.__doc__ or "") or column in state["kpis"]


def test_a_recording_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    recorder = Recorder(model, "module::*", out=tmp_path / "r", flush_every=2)
    _run(recorder, model, 5)
    partial = Recording.load(tmp_path / "r")
    assert not partial.complete
    assert partial.steps["step"].tolist() == [0, 1, 2, 3]
    assert recorder.recording().steps["step"].tolist() == [0, 1, 2, 3, 4]
    recorder.close()
    assert Recording.load(tmp_path / "r").steps["step"].tolist() == [0, 1, 2, 3, 4]


def test_an_exception_leaves_every_finished_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="mine"), Recorder(model, "module::*", out=tmp_path / "r") as recorder:  # noqa: PT012
        _run(recorder, model, 3)
        with recorder.step():
            raise RuntimeError("mine")
    assert Recording.load(tmp_path / "r").steps["step"].tolist() == [0, 1, 2]


_KILLED = """
import os, signal, sys, torch
from torch import nn
from crosslens.tasks.recorder import Recorder
model = nn.Linear(3, 2)
recorder = Recorder(model, "module::*", out=sys.argv[1], flush_every=2)
for number in range(5):
    with recorder.step("a"):
        model(torch.ones(2, 3)).sum().backward()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_finished_steps(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "r")], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    read = Recording.load(tmp_path / "r")
    assert not read.complete
    assert read.steps["step"].tolist()[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["torn", "gone", "changed"])
def test_a_damaged_part_is_left_out_and_named(tmp_path: Path, how: str) -> None:
    _made(tmp_path / "r")
    part = tmp_path / "r" / "part-00001.parquet"
    data = part.read_bytes()
    if how == "gone":
        part.unlink()
    else:
        part.write_bytes(data[: len(data) // 2] if how == "torn" else data[:200] + b"\0" + data[201:])
    read = Recording.load(tmp_path / "r")
    assert not read.complete
    assert len(read.problems) == 1
    assert "part-00001.parquet" in read.problems[0]
    assert "2 steps" in read.problems[0]
    assert read.steps["step"].tolist() == [0, 1, 4, 5]
    assert set(read.table()["step"]) == {0, 1, 4, 5}


def test_a_full_disk_does_not_stop_training_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 2)
    real, full = recording_store.replace_file, [False]

    def replace(path: Path, data: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    monkeypatch.setattr(recording_store, "replace_file", replace)
    recorder = Recorder(model, "module::*", out=tmp_path / "r", flush_every=2)
    _run(recorder, model, 2)
    full[0] = True
    with pytest.warns(RecordingWarning, match="No space left") as caught:  # noqa: PT031
        _run(recorder, model, 6)
        recorder.flush()
    assert len(caught) == 1  # once
    assert recorder.recording().steps["step"].tolist() == list(range(8))
    assert Recording.load(tmp_path / "r").steps["step"].tolist() == [0, 1]
    full[0] = False
    recorder.close()
    read = Recording.load(tmp_path / "r")
    assert read.complete
    assert read.steps["step"].tolist() == list(range(8))


def test_a_disk_that_stays_full_is_marked_and_memory_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 2)
    recorder = Recorder(model, "module::*", out=tmp_path / "r", flush_every=2, memory=20_000)

    def replace(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(recording_store, "replace_file", replace)
    with pytest.warns(RecordingWarning):  # noqa: PT031
        _run(recorder, model, 60)
        recorder.close()
    found = recorder.recording()
    assert not found.complete
    assert any("lost" in problem for problem in found.problems)
    held = found.steps["step"].tolist()
    assert held == list(range(len(held)))  # the first steps, without a gap
    assert 0 < len(held) < 60
    assert not Recording.load(tmp_path / "r").complete


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"mine\.txt"):
        Recorder(nn.Linear(3, 2), "module::*", out=tmp_path)
    with pytest.raises(InputError, match="folder"):
        Recorder(nn.Linear(3, 2), "module::*", out=tmp_path / "mine.txt")
    with pytest.raises(InputError, match="no recording"):
        Recording.load(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 999}, "install the version"),
        ({"schema": "x"}, "schema 'x'"),
        ({"parts": None}, "parts"),
    ],
)
def test_another_version_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    _made(tmp_path / "r")
    file = tmp_path / "r" / "recording.json"
    state = json.loads(file.read_text()) | change
    file.write_text(json.dumps({name: value for name, value in state.items() if value is not None}))
    with pytest.raises(InputError, match=words):
        Recording.load(tmp_path / "r")


def test_a_torn_json_is_said(tmp_path: Path) -> None:
    _made(tmp_path / "r")
    file = tmp_path / "r" / "recording.json"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"recording\.json"):
        Recording.load(tmp_path / "r")


def test_single_precision_takes_few_bytes_and_double_is_kept_whole(tmp_path: Path) -> None:
    for dtype, tolerance in ((torch.float32, 2**-24), (torch.float64, 0.0)):
        model = nn.Linear(3, 2).to(dtype)
        x = torch.randn(4, 3, dtype=dtype)
        path = tmp_path / str(dtype)
        recorder = Recorder(model, "module::input", out=path, parameters=False, kpis=("mean", "sd"))
        with recorder, recorder.step():
            model(x)
        table = Recording.load(path).table()
        found = dict(zip(table["kpi"], table["value"], strict=True))
        assert found["mean"] == pytest.approx(float(x.double().mean()), rel=max(tolerance, 1e-15))
        assert found["sd"] == pytest.approx(float(x.double().std(correction=0)), rel=max(tolerance, 1e-15))


# ---- what differs


def test_contrasts_find_what_differs_by_category_of_step(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    noise = torch.Generator().manual_seed(0)
    with Recorder(model, "module:?:*", out=tmp_path / "r", kpis=("mean", "sd")) as recorder:
        for number in range(40):
            with recorder.step("ab"[number % 2]):
                model(torch.randn(8, 3, generator=noise) * (1 + 3 * (number % 2))).sum()
    found = Recording.load(tmp_path / "r").contrasts(permutations=200)
    sd = found[(found["site"] == "module:0:input") & (found["kpi"] == "sd")].iloc[0]
    assert sd["n_a"] == sd["n_b"] == 20  # steps, not samples
    assert sd["q_bh"] < 0.001
    assert {sd["a"], sd["b"]} == {"a", "b"}
    parameters = found[found["kind"] == "parameter"]
    assert len(parameters)
    assert not (parameters["p_welch"] < 0.05).any()  # they do not change


def test_contrasts_of_samples_are_paired_by_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 4)
    noise = torch.Generator().manual_seed(0)
    with Recorder(model, "module::input", out=tmp_path / "r", kpis=("mean",), parameters=False) as recorder:
        for _ in range(12):
            with recorder.step("train") as step:
                step.samples(list("xyxy"))
                model(torch.randn(4, 3, generator=noise) + torch.tensor([[0.0], [9.0], [0.0], [9.0]]))
    found = Recording.load(tmp_path / "r").contrasts(samples=True, permutations=200)
    assert found["tested"].tolist() == ["paired"]
    assert found["n_a"].tolist() == [12]
    assert found["difference"].iloc[0] == pytest.approx(-9, abs=1)


def test_the_page_is_written(tmp_path: Path) -> None:
    _made(tmp_path / "r")
    Recording.load(tmp_path / "r").to_html(tmp_path / "page.html", permutations=20)
    assert "module::output" in (tmp_path / "page.html").read_text(encoding="utf-8")
