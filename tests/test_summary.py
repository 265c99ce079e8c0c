"""The table over a run: counts, means over the cells that all have right and over no other, controls, marks."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crosslens.benchmarks.estimate import over_tasks
from crosslens.benchmarks.render import FORMATS, write
from crosslens.benchmarks.store import RunFolder, StoredRun, read_run
from crosslens.benchmarks.summary import Summary, SummaryRow, every_table, summary
from crosslens.benchmarks.tables import tables

from .test_tables import AGAIN, ARGUMENTS, FACTS, SCORE, a_cell

TASKS = ["ioi", "facts", "lens", "probe", "saliency"]
COSTS = {"ioi": 1.1, "facts": 1.3, "lens": 1.02, "probe": 1.2, "saliency": 2.0}


def a_run(
    path: Path, found: dict[str, dict[str, tuple[str, float]]], models: tuple[str, ...] = ("tiny-llama",)
) -> StoredRun:
    """backend -> task -> its outcome and ratio to bare; on several models, each the same."""
    folder = RunFolder(path, FACTS | {"arguments": ARGUMENTS | {"tasks": TASKS, "models": list(models), "skipped": {}}})
    for model in models:
        for task in TASKS:
            reference = a_cell(None, id=f"{task}.{model}.reference", task=task, model=model)
            folder.add(reference, [], folder.scratch("x"))
            for backend, outcomes in found.items():
                if task not in outcomes:
                    continue
                status, ratio = outcomes[task]
                score = SCORE | {"right": status == "right", "max_rel_error": 1e-7 * ratio}
                name = f"{task}.{model}.{backend.replace(' (A/A)', '-again')}.1"
                more: dict[str, Any] = {"id": name, "task": task, "model": model, "score": score}
                blocks = [{"order": "bare,hooks,step", "bare_s": 2.0, "hooks_s": 2.5, "step_s": 2.0 * ratio}] * 12
                folder.add(a_cell(backend, status, **more), blocks if status == "right" else [], folder.scratch("x"))
    folder.close()
    return read_run(path)


def right(factor: float = 1.0) -> dict[str, tuple[str, float]]:
    return {task: ("right", cost * factor) for task, cost in COSTS.items()}


def rows(run: StoredRun) -> dict[str, SummaryRow]:
    return {row.backend: row for row in summary(run, tables(run)).rows}


def test_the_mean_is_geometric_over_what_all_compared_have_right(tmp_path: Path) -> None:
    nnsight = right(1.5) | {"saliency": ("unsupported", 1.0), "probe": ("wrong", 1.0)}
    lens = right(2.0)
    del lens["lens"]  # the run was stopped before it
    run = a_run(tmp_path / "run", {"hooks": right(), "nnsight": nnsight, "transformer_lens": lens})
    found, common = rows(run), [COSTS["ioi"], COSTS["facts"]]
    for name, factor in (("hooks", 1.0), ("nnsight", 1.5), ("transformer_lens", 2.0)):
        ratio, to_hooks = found[name].ratio, found[name].to_hooks
        assert ratio is not None
        assert to_hooks is not None
        assert ratio == over_tasks([c * factor for c in common]) or ratio.value == pytest.approx(
            factor * math.prod(common) ** 0.5, rel=1e-12
        )
        assert to_hooks.value == pytest.approx(ratio.value / 1.25, rel=1e-12)
        assert found[name].coverage == "2 of 5"
    counts = {name: (r.right, r.wrong, r.unsupported, r.other) for name, r in found.items()}
    assert counts == {"hooks": (5, 0, 0, 0), "nnsight": (3, 1, 1, 0), "transformer_lens": (4, 0, 0, 1)}
    text = FORMATS["md"](every_table(run))
    assert "over the 2 of 5 cells that hooks, nnsight and transformer_lens all have right, and over no other" in text


def test_a_backend_that_does_little_does_not_shrink_what_others_are_compared_over(tmp_path: Path) -> None:
    little = {"ioi": ("right", 0.5)} | {task: ("unsupported", 1.0) for task in TASKS if task != "ioi"}
    run = a_run(tmp_path / "run", {"hooks": right(), "nnsight": right(1.5), "transformer_lens": little})
    found = rows(run)
    assert (found["transformer_lens"].ratio, found["transformer_lens"].coverage) == (None, "")
    assert found["hooks"].coverage == "5 of 5"
    assert "not compared, since right in less than half of the cells: transformer_lens" in FORMATS["md"](
        every_table(run)
    )


def test_figures_are_medians_and_the_largest_error(tmp_path: Path) -> None:
    hooks = rows(a_run(tmp_path / "run", {"hooks": right()}))["hooks"]
    assert (hooks.import_s, hooks.wrap_s, hooks.first_call_s, hooks.close_s) == (0.5, 0.0123, 1.25, 0.1)
    assert hooks.error == pytest.approx(2e-7)
    assert (hooks.cells, hooks.processes) == (5, 5)


def test_tasks_are_the_unit_and_models_are_within_them(tmp_path: Path) -> None:
    """Twice the models is not twice the evidence."""
    one = rows(a_run(tmp_path / "one", {"hooks": right()}))["hooks"].ratio
    two = rows(a_run(tmp_path / "two", {"hooks": right()}, ("tiny-llama", "tiny-gpt2")))["hooks"].ratio
    assert one is not None
    assert two is not None
    assert (two.low, two.value, two.high) == pytest.approx((one.low, one.value, one.high), rel=1e-9)


def test_a_backend_under_two_names_is_compared_with_itself_over_all_tasks(tmp_path: Path) -> None:
    run = a_run(tmp_path / "near", {"hooks": right(), AGAIN: right(), "nnsight": right(1.5)})
    table = summary(run, tables(run))
    assert [row.backend for row in table.rows][:2] == [AGAIN, "hooks"]
    same = table.rows[0].same
    assert same is not None
    assert (same.low, same.high) == pytest.approx((1.0, 1.0))
    assert table.cautions == []
    assert any(note.startswith("A/A: hooks under two names") for note in table.notes)

    run = a_run(tmp_path / "apart", {"hooks": right(), AGAIN: right(1.1), "nnsight": right(1.5)})
    table = summary(run, tables(run))
    assert (
        "this run is not to be trusted to the precision of its intervals: over 5 cells hooks under two names"
        in (table.cautions[0])
    )
    assert "in 5 of 5 tables, more than the one in twenty that chance makes" in table.cautions[1]
    assert "**Caution:** this run is not" in FORMATS["md"]([table])


def test_one_table_in_twenty_may_miss(tmp_path: Path) -> None:
    again = right() | {"ioi": ("right", 1.2)}
    run = a_run(tmp_path / "run", {"hooks": right(), AGAIN: again})
    assert not [c for c in summary(run, tables(run)).cautions if "tables" in c], "one of five is chance's"
    assert "differs from itself by a factor of 1.091" in tables(run)[0].cautions[0]


def test_the_best_is_marked_where_intervals_over_tasks_are_apart(tmp_path: Path) -> None:
    even = {task: ("right", 1.1 + i / 1000) for i, task in enumerate(TASKS)}
    dear = {task: ("right", 1.5 + i / 1000) for i, task in enumerate(TASKS)}
    run = a_run(tmp_path / "apart", {"hooks": even, AGAIN: even, "nnsight": dear})
    assert summary(run, tables(run)).best == {"ratio": "hooks", "to_hooks": "hooks"}
    assert "**1.102 [" in FORMATS["md"]([summary(run, tables(run))])
    near = a_run(tmp_path / "near", {"hooks": right(), "nnsight": right(1.05)})
    assert summary(near, tables(near)).best == {}


def test_of_nothing_in_common_there_is_no_mean(tmp_path: Path) -> None:
    half = {task: ("right" if i < 3 else "wrong", 1.1) for i, task in enumerate(TASKS)}
    other = {task: ("right" if i > 2 else "wrong", 1.1) for i, task in enumerate(TASKS)} | {"ioi": ("failed", 1.0)}
    found = rows(a_run(tmp_path / "run", {"hooks": half, "nnsight": {**other, "lens": ("wrong", 1.0)}}))
    assert found["hooks"].ratio is not None, "nnsight has two of five: hooks is compared alone"
    both = {"hooks": half, "nnsight": {task: ("right" if i > 1 else "wrong", 1.1) for i, task in enumerate(TASKS)}}
    found = rows(a_run(tmp_path / "one", both))
    assert found["hooks"].coverage == "1 of 5"


def test_every_format_has_it_and_csv_reads_as_one_table(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", {"hooks": right(), AGAIN: right(1.01)})
    every = every_table(run)
    assert isinstance(every[-1], Summary)
    names = {path.name for path in write(every, tmp_path / "tables")}
    assert {"summary.md", "summary.csv", "ioi.tiny-llama.md"} <= names
    found = list(csv.DictReader(io.StringIO(FORMATS["csv"](every))))
    assert [row["task"] for row in found if row["backend"] == "hooks"] == [*TASKS, "all"]
    ratio = every[-1].rows[1].ratio
    assert ratio is not None
    whole = next(row for row in found if (row["task"], row["backend"]) == ("all", "hooks"))
    assert float(whole["ratio"]) == ratio.value, "not rounded"
    assert json.loads(FORMATS["json"](every))[-1]["rows"][0]["same"]["value"] == pytest.approx(1.01)
    assert FORMATS["latex"](every).count(r"\begin{tabular}") == len(TASKS) + 1
    assert np.isfinite(float(whole["ratio_high"]))
