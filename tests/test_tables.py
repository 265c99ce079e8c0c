"""Tables: a pure function of a run's folder; withheld figures stay withheld in every format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from crosslens.adapters import InputError
from crosslens.benchmarks.render import FORMATS, write
from crosslens.benchmarks.store import RunFolder, StoredRun, read_run
from crosslens.benchmarks.summary import every_table
from crosslens.benchmarks.tables import CONTROL, Row, Table, tables
from crosslens.benchmarks.terminal import show

AGAIN = "hooks (A/A)"
ARGUMENTS = {
    "backends": ["hooks", "nnsight", "transformer_lens"],
    "skipped": {"pyvene": "backend 'pyvene' needs 'pyvene', which is not installed; pip install 'crosslens[pyvene]'"},
    "tasks": ["ioi"],
    "models": ["tiny-llama"],
    "threads": 2,
    "dtype": "float32",
    "attn_implementation": "sdpa",
}
ENVIRONMENT = {
    "cpu": "Some CPU",
    "cores": {"physical": 2, "logical": 4},
    "load_average": [0.1, 0.1, 0.1],
    "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
}
FACTS = {"arguments": ARGUMENTS, "environment": ENVIRONMENT, "random_models": ["tiny-llama"], "cells": []}
SCORE = {"max_abs_error": 1e-6, "max_rel_error": 2e-7, "rank_agreement": 0.9996, "effect": 90.0, "noise": 1e-7}
FIGURES = {
    "import_s": 0.5,
    "wrap_s": 0.0123,
    "first_call_s": 1.25,
    "task_s": 12.5,
    "close_s": 0.1,
    "bare_alone_s": 1.0,
    "peak_bytes": 812_000_000,
    "rise_bytes": 9_000_000,
}


def a_cell(backend: str | None, status: str = "right", repeat: int = 1, **more: Any) -> dict[str, Any]:
    kind = "reference" if backend is None else "backend"
    end = "reference" if backend is None else f"{backend.replace(' (A/A)', '-again')}.{repeat}"
    return {
        "id": f"ioi.tiny-llama.{end}",
        "kind": kind,
        "backend": backend,
        "task": "ioi",
        "model": "tiny-llama",
        "repeat": repeat,
        "status": "done" if backend is None else status,
        "reason": None,
        "figures": dict(FIGURES),
        "score": SCORE | {"right": status == "right"},
        "version": "1.2.3",
        "headline": "layer 7",
    } | more


def samples(cell: dict[str, Any], ratio: float, pairs: int = 12) -> list[dict[str, Any]]:
    noise = np.random.default_rng(len(cell["id"])).normal(1.0, 0.01, pairs)
    hooks = {} if cell["backend"] is None else {"hooks_s": 1.02}
    return [{"order": "bare,step", "bare_s": 1.0, "step_s": float(ratio * noise[i]), **hooks} for i in range(pairs)]


def stored(path: Path, cells: list[tuple[dict[str, Any], float]], **arguments: Any) -> StoredRun:
    folder = RunFolder(path, FACTS | {"arguments": ARGUMENTS | arguments})
    for cell, ratio in cells:
        folder.add(cell, samples(cell, ratio), folder.scratch(cell["id"]))
    return read_run(path)


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    wrong = SCORE | {"max_rel_error": 0.5, "right": False}
    return stored(
        tmp_path / "run",
        [
            (a_cell(None), 1.0),
            (a_cell("nnsight", "wrong", reason="largest relative error 0.5", score=wrong), 1.0),
            (a_cell("hooks"), 1.25),
        ],
    )


def rows(run: StoredRun) -> dict[str, Row]:
    (table,) = tables(run)
    return {row.backend: row for row in table.rows}


def test_rows_stand_in_the_order_of_the_arguments_after_the_control(run: StoredRun) -> None:
    assert list(rows(run)) == [CONTROL, "hooks", "nnsight", "transformer_lens", "pyvene"]
    assert [row.result for row in rows(run).values()] == ["", "right", "wrong", "not run", "skipped"]


def test_the_ratio_is_of_the_raw_samples(run: StoredRun) -> None:
    ratio = rows(run)["hooks"].ratio
    assert ratio is not None
    raw = run.samples[run.samples["cell"] == "ioi.tiny-llama.hooks.1"]
    assert ratio.value == pytest.approx(np.exp(np.median(np.log(raw["step_s"] / raw["bare_s"]))), rel=1e-14)
    assert ratio.low < 1.25 < ratio.high
    assert rows(run)["hooks"].pairs == 12
    to_hooks = rows(run)["hooks"].to_hooks
    assert to_hooks is not None
    assert to_hooks.value == pytest.approx(ratio.value / 1.02, rel=1e-14)


def test_where_hooks_were_not_timed_there_is_no_ratio_to_them(tmp_path: Path) -> None:
    cell = a_cell("nnsight", no_hooks="attribute (never): hooks alone have no methods")
    folder = RunFolder(tmp_path / "run", FACTS)
    blocks = [{"order": "bare,step", "bare_s": 1.0, "step_s": 1.5}] * 9
    folder.add(cell, blocks, folder.scratch(cell["id"]))
    nnsight = rows(read_run(tmp_path / "run"))["nnsight"]
    assert (nnsight.to_hooks, nnsight.ratio is not None) == (None, True)
    assert "nnsight: there is no ratio to native hooks, which cannot do this step: attribute (never)" in notes(
        read_run(tmp_path / "run")
    )


def test_figures_keep_their_units(run: StoredRun) -> None:
    hooks = rows(run)["hooks"]
    assert (hooks.peak_mb, hooks.rise_mb, hooks.wrap_s, hooks.task_s) == (812.0, 9.0, 0.0123, 12.5)
    assert (hooks.error, hooks.rank) == (2e-7, 0.9996)


@pytest.mark.parametrize("status", ["wrong", "vacuous", "crashed", "timeout"])
def test_a_result_that_is_not_right_has_no_time_even_where_samples_are_stored(tmp_path: Path, status: str) -> None:
    run = stored(tmp_path / "run", [(a_cell(None), 1.0), (a_cell("hooks", status), 1.25)])
    hooks = rows(run)["hooks"]
    assert (hooks.result, hooks.ratio, hooks.task_s, hooks.first_call_s) == (status, None, None, None)
    assert hooks.error is not None
    for form in FORMATS.values():
        assert "1.25" not in form(tables(run)).replace("1.2.3", "")


def test_of_repeats_the_worst_counts(tmp_path: Path) -> None:
    cells = [a_cell("hooks", repeat=1), a_cell("hooks", "wrong", repeat=2), a_cell("hooks", repeat=3)]
    run = stored(tmp_path / "run", [(cell, 1.0) for cell in cells])
    assert rows(run)["hooks"].result == "wrong (1 of 3)"
    assert rows(run)["hooks"].ratio is None


def test_repeats_are_one_row_with_the_median_and_the_largest(tmp_path: Path) -> None:
    cells = [a_cell("hooks", repeat=n, figures=FIGURES | {"wrap_s": w, "peak_bytes": w * 1e6}) for n, w in
             ((1, 1.0), (2, 5.0), (3, 2.0))]  # fmt: skip
    run = stored(tmp_path / "run", [(cell, ratio) for cell, ratio in zip(cells, (1.1, 1.2, 1.6), strict=True)])
    hooks = rows(run)["hooks"]
    assert (hooks.processes, hooks.pairs, hooks.wrap_s, hooks.peak_mb) == (3, 36, 2.0, 5.0)
    assert hooks.ratio is not None
    assert hooks.ratio.value == pytest.approx((1.1 * 1.2 * 1.6) ** (1 / 3), rel=0.01)
    assert hooks.ratio.high > 1.6, "the interval must show that processes differ"
    assert "[95 % interval]" in FORMATS["md"](tables(run))
    assert any("geometric mean over 3 processes" in note for note in tables(run)[0].legend)


def notes(run: StoredRun) -> str:
    (table,) = tables(run)
    return "\n".join([*table.cautions, *table.notes, *table.legend])


def test_notes_say_what_went_wrong_and_what_the_figures_are(run: StoredRun) -> None:
    text = notes(run)
    assert "pyvene was skipped: " in text
    assert "pip install 'crosslens[pyvene]'" in text
    assert "nnsight: wrong: largest relative error 0.5" in text
    assert "the run was stopped before transformer_lens" in text
    assert "drawn order; 12 blocks" in text
    assert "within one process" in text
    assert "Some CPU, 2 cores, 2 threads a cell, load 0.1 at the start; torch 2.13.0+cpu" in text
    assert "transformers 5.23.0; float32" in text
    assert "tiny-llama has random weights" in text
    assert "busy" not in text
    assert "control" not in text


def test_a_control_that_does_not_cover_1_is_said(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", [(a_cell(None), 1.3), (a_cell("hooks"), 1.3)])
    assert "the control does not cover 1 (1." in notes(run)


def test_a_library_that_slows_the_bare_forward_is_said(tmp_path: Path) -> None:
    def slow(backend: str, alone: float, repeat: int = 1) -> tuple[dict[str, Any], float]:
        return a_cell(backend, repeat=repeat, figures=FIGURES | {"bare_alone_s": alone}), 1.0

    often = [slow("nnsight", 0.5), slow("nnsight", 0.4, 2)]
    says = "nnsight: in each process the bare forward took at least 2.00 times as long"
    assert says in notes(stored(tmp_path / "often", often))
    assert says in notes(stored(tmp_path / "hooks", [*often, slow("hooks", 0.8)]))
    once = [slow("nnsight", 0.5), slow("nnsight", 1.0, 2)]
    assert "times as long" not in notes(stored(tmp_path / "once", once)), "one process of two may be chance"
    alike = [*often, slow(AGAIN, 0.45)]
    assert "times as long" not in notes(stored(tmp_path / "alike", alike)), "so does what leaves the model as it is"


def test_a_busy_machine_is_said(run: StoredRun) -> None:
    facts = run.facts | {"environment": ENVIRONMENT | {"load_average": [3.0, 1.0, 1.0]}}
    assert "busy when the run started (load 3.0 on 2 cores)" in notes(replace(run, facts=facts))


def test_a_run_that_was_stopped_at_once_has_no_tables(tmp_path: Path) -> None:
    assert tables(stored(tmp_path / "run", [])) == []
    for form in FORMATS.values():
        form([])


def test_a_reference_that_failed_leaves_the_rest_readable(tmp_path: Path) -> None:
    failed = a_cell(None, reason="while computing the reference: MemoryError") | {"status": "out-of-memory"}
    lost = a_cell("hooks", "failed", reason="not run: its reference did not finish", figures={})
    del lost["score"]
    run = stored(tmp_path / "run", [(failed, 1.0), (lost, 1.0)])
    assert CONTROL not in rows(run)
    assert rows(run)["hooks"].result == "failed"
    assert "the reference: out-of-memory: while computing" in notes(run)


# ---- formats


def test_rendering_twice_gives_the_same_bytes(run: StoredRun, tmp_path: Path) -> None:
    for form in FORMATS.values():
        assert form(tables(run)) == form(tables(run))
    first = {path.name: path.read_bytes() for path in write(tables(run), tmp_path / "one")}
    second = {path.name: path.read_bytes() for path in write(tables(run), tmp_path / "one")}
    assert first == second
    assert sorted(first) == ["ioi.tiny-llama.csv", "ioi.tiny-llama.md"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(first)


def test_markdown_is_a_table_with_units_in_its_header(run: StoredRun) -> None:
    text = FORMATS["md"](tables(run))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert head == [
        "backend",
        "version",
        "result",
        "largest error",
        "rank",
        "ratio to bare [95 % within one process]",
        "ratio to hooks [95 % within one process]",
        "import s",
        "wrap s",
        "first call s",
        "task s",
        "close s",
        "peak MB",
        "rise MB",
        "GPU MB",
    ]
    assert lines[3].endswith(" not measured |"), "hooks ran where there is no GPU"
    assert lines[4].endswith("  |"), "what was not timed is not said not to be measured"
    assert re.search(r"\| hooks +\| 1\.2\.3 +\| right +\| +2\.0e-07 \| 1\.000 \|", text)
    assert "**Finding:** layer 7" in text


def test_csv_holds_unrounded_figures(run: StoredRun) -> None:
    found = list(csv.DictReader(io.StringIO(FORMATS["csv"](tables(run)))))
    hooks = next(row for row in found if row["backend"] == "hooks")
    ratio = rows(run)["hooks"].ratio
    assert ratio is not None
    assert float(hooks["ratio"]) == ratio.value
    assert (float(hooks["ratio_low"]), float(hooks["ratio_high"])) == (ratio.low, ratio.high)
    assert float(hooks["wrap_s"]) == 0.0123
    assert next(row for row in found if row["backend"] == "nnsight")["ratio"] == ""


def test_json_is_strict_whatever_the_figures(tmp_path: Path) -> None:
    broken = a_cell(
        "hooks", "wrong", score=SCORE | {"max_rel_error": float("inf"), "rank_agreement": float("nan"), "right": False}
    )
    run = stored(tmp_path / "run", [(broken, 1.0)])
    assert "NaN" not in FORMATS["json"](tables(run))
    (table,) = json.loads(FORMATS["json"](tables(run)))
    assert table["rows"][0]["error"] == "inf"
    assert table["rows"][0]["rank"] == "nan"


def test_latex_escapes_what_latex_reads(run: StoredRun) -> None:
    text = FORMATS["latex"](tables(run))
    assert r"transformer\_lens" in text
    assert r"{[}95 \% within one process]" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in body}) == 1


@pytest.mark.parametrize("width", [100, 140])
def test_a_terminal_shows_every_figure_whole(run: StoredRun, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    show(console, tables(run))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert re.search(r"hooks +1\.2\.3 +right +2\.0e-07 +(1\.000 +)?1\.\d{3} \[1\.\d{3}, 1\.\d{3}\]", text)
    assert "transformer_lens" in text
    assert ("rise" in text) == (width > 110)
    assert "ratio to bare" in text


def test_a_folder_that_cannot_be_written_is_an_input_error(run: StoredRun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--format prints them instead"):
        write(tables(run), tmp_path / "file")


def test_a_pipe_in_a_name_does_not_break_the_table() -> None:
    text = FORMATS["md"]([Table("x", "t", "m", [Row("a|b", None, "right")], None)])
    assert r"a\|b" in text


def test_samples_of_other_cells_do_not_matter(run: StoredRun) -> None:
    more = pd.concat([run.samples, run.samples.assign(cell="another")])
    assert rows(replace(run, samples=more)) == rows(run)


def test_a_task_with_a_model_of_its_own_has_a_table_and_what_is_known_is_said(tmp_path: Path) -> None:
    known = {"fact": "water is wet", "found": "0.98 wet", "holds": True}
    own = {"task": "encoder", "model": "minilm-l6"}
    cells = [a_cell(None, id="r", known=known, **own), a_cell("hooks", id="h", **own), a_cell(None)]
    facts = FACTS | {"arguments": ARGUMENTS | {"tasks": ["ioi", "encoder"], "jobs": 2, "threads": 1}}
    folder = RunFolder(tmp_path / "run", facts)
    for cell in cells:
        folder.add(cell, [], folder.scratch(cell["id"]))
    folder.close()
    found = tables(read_run(tmp_path / "run"))
    assert [table.title for table in found] == ["ioi on tiny-llama", "encoder on minilm-l6"]
    text = FORMATS["md"](found[1:])
    assert "known: water is wet, which the reference shows: 0.98 wet" in text
    assert "1 thread a cell, 2 cells at a time, each on cores of its own" in text


# ---- A/A, and what is best


def many(path: Path, found: dict[str, list[float]], **arguments: Any) -> StoredRun:
    """A run of so many processes of each backend, each with its ratio."""
    cells = [(a_cell(name, repeat=n), ratio) for name, all_ in found.items() for n, ratio in enumerate(all_, start=1)]
    return stored(path, [(a_cell(None), 1.0), *cells], **arguments)


def test_a_backend_under_two_names_is_a_control_and_covers_1(tmp_path: Path) -> None:
    run = many(tmp_path / "run", {"hooks": [1.09, 1.1, 1.12], AGAIN: [1.11, 1.08, 1.1], "nnsight": [1.5, 1.6, 1.55]})
    assert list(rows(run))[:3] == [CONTROL, AGAIN, "hooks"]
    again = rows(run)[AGAIN]
    assert again.control
    assert not rows(run)["hooks"].control
    assert again.same is not None
    assert again.same.covers(1.0)
    expected = (1.11 * 1.08 * 1.1 / (1.09 * 1.1 * 1.12)) ** (1 / 3)
    assert again.same.value == pytest.approx(expected, rel=0.01)
    assert rows(run)["hooks"].same is None
    assert "A/A: hooks under two names, in other processes, differs from itself by a factor of" in notes(run)
    assert "over 3 and 3 processes" in notes(run)
    assert tables(run)[0].cautions == []


def test_a_backend_that_differs_from_itself_is_said_in_every_format(tmp_path: Path) -> None:
    run = many(tmp_path / "run", {"hooks": [1.10, 1.101, 1.099], AGAIN: [1.20, 1.201, 1.199]})
    again = rows(run)[AGAIN].same
    assert again is not None
    assert not again.covers(1.0)
    for name, form in FORMATS.items():
        if name != "csv":  # which has the figures alone
            assert "not to be trusted to the precision of its intervals: hooks under two names" in form(tables(run))
    assert "**Caution:**" in FORMATS["md"](tables(run))
    assert r"\caption{ioi on tiny-llama. layer 7. Caution: not to be trusted" in FORMATS["latex"](tables(run))


def test_with_one_process_each_it_is_said_what_the_interval_covers(tmp_path: Path) -> None:
    run = many(tmp_path / "run", {"hooks": [1.10], AGAIN: [1.101], "nnsight": [1.5]})
    assert "over the blocks of one process each: it does not cover what differs between processes" in notes(run)
    assert "in each of the 3 processes of this table: 1.020 to 1.020" in notes(run)
    assert tables(run)[0].best == {}, "nothing is best by an interval within one process"


def test_a_control_that_was_wrong_has_no_ratio_to_itself(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", [(a_cell(None), 1.0), (a_cell("hooks", "wrong"), 1.0), (a_cell(AGAIN), 1.3)])
    assert rows(run)[AGAIN].same is None
    assert tables(run)[0].cautions == []


def test_the_best_is_marked_only_where_intervals_separate_it(tmp_path: Path) -> None:
    apart = {"hooks": [1.1, 1.11, 1.105], AGAIN: [1.1, 1.1, 1.1], "nnsight": [1.5, 1.51, 1.49]}
    run = many(tmp_path / "apart", apart)
    (table,) = tables(run)
    assert table.best["ratio"] == "hooks", "the control is no rival"
    assert re.search(r"\| hooks .*\| +\*\*1\.10\d \[", FORMATS["md"]([table]))
    assert r"\textbf{1.10" in FORMATS["latex"]([table])
    assert FORMATS["md"]([table]).count("**1.") == len(table.best)
    near = many(tmp_path / "near", {**apart, "nnsight": [1.1, 1.2, 1.3]})
    assert tables(near)[0].best == {}
    alone = many(tmp_path / "alone", {"hooks": [1.1, 1.11, 1.105]})
    assert tables(alone)[0].best == {}


def test_latex_is_what_latex_can_read(run: StoredRun, tmp_path: Path) -> None:
    torn = a_cell(
        "hooks", "failed", reason="first line\nsecond_line & 100 %", headline="50 % of a_b\nand ≥ 2 ~ 3 × {4}"
    )
    found = tables(
        stored(tmp_path / "torn", [(a_cell(None, headline="50 % of a_b\n≥ 2 ~ [3] × {4} <5>"), 1.0), (torn, 1.0)])
    )
    text = FORMATS["latex"](found + tables(run))
    assert "\nsecond_line" not in text, "a note is a comment to its end"
    for each in ("table", "tabular"):
        assert text.count(rf"\begin{{{each}}}") == text.count(rf"\end{{{each}}}") == 2
    if (pdflatex := shutil.which("pdflatex")) is not None:
        document = tmp_path / "t.tex"
        head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        document.write_text(head + text + "\\end{document}\n", encoding="utf-8")
        command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", document.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Missing character" not in (tmp_path / "t.log").read_text(errors="replace")


def test_committed_tables_are_what_their_run_renders_to(tmp_path: Path) -> None:
    kept = [path.parent for path in (Path(__file__).parent.parent / "results").glob("*/run.json")]
    assert kept
    for folder in kept:
        made = write(every_table(read_run(folder)), tmp_path / folder.name)
        assert len(made) > 10
        for path in made:
            assert path.read_text() == (folder / "tables" / path.name).read_text(), path.name
