"""What a run itself says: its cells at a glance, what they cost, its tables, every cell, and where it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from crosslens.benchmarks.columns import cell_text
from crosslens.benchmarks.render import AnyTable, is_best, one_line
from crosslens.benchmarks.rows import Row
from crosslens.benchmarks.store import StoredRun
from crosslens.benchmarks.tables import Table as Results

from .blocks import Block, Cell, Figures, Heat, Section, Table, heading, listing, paragraph
from .charts import Interval, intervals, span
from .programs import Programs

_STATES = {
    "right": "good",
    "unsupported": "none",
    "skipped": "none",
    "not run": "none",
    "vacuous": "fair",
    "wrong": "bad",
}
_LEGEND = {
    "good": "right: what the reference says, to rounding",
    "fair": "vacuous: its edits had too little effect to tell",
    "poor": "failed, crashed, out of memory or of time",
    "bad": "wrong, without an error",
    "none": "unsupported, skipped or not run",
}
_MOST_LISTED = 20


def unfinished(run: StoredRun) -> list[str]:
    """Ids of the cells that were planned and have not finished."""
    done = {cell["id"] for cell in run.cells}
    return [str(name) for name in run.facts["cells"] if name not in done]


def asked(run: StoredRun) -> list[Block]:
    """What was run, on what, and whether all of it finished."""
    arguments, machine = run.facts["arguments"], run.facts["environment"]
    models = list(dict.fromkeys((*arguments["models"], *(cell["model"] for cell in run.cells))))
    text = (
        f"{_several(len(arguments['tasks']), 'task')} on {', '.join(models)} through "
        f"{_several(len(arguments['backends']), 'backend')}"
    )
    if suite := arguments.get("suite"):
        text = f"The {suite} suite: {text}"
    if repeats := arguments.get("repeats"):
        text += f", {_several(repeats, 'process', 'processes')} a cell"
    blocks: list[Block] = [paragraph(f"{text}."), paragraph(f"{_where(run.facts, machine)}.")]
    if missing := unfinished(run):
        blocks.append(paragraph(f"Unfinished: {len(missing)} of {len(run.facts['cells'])} planned cells are not here."))
        more = [f"and {len(missing) - _MOST_LISTED} more"] if len(missing) > _MOST_LISTED else []
        blocks.append(listing([*missing[:_MOST_LISTED], *more]))
    return blocks


def _where(facts: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """When, on what machine and of what version; what was not kept is left out."""
    cores = machine.get("cores") or {}
    memory, git, versions = machine.get("memory_bytes"), machine.get("git") or {}, machine.get("versions") or {}
    changed = " with changes" if git.get("changed") else ""
    parts = [
        f"Started {facts['started']}" if "started" in facts else "",
        machine.get("cpu", ""),
        f"{cores['physical'] or cores['logical']} cores" if cores else "",
        f"{memory / 2**30:.0f} GiB" if memory else "",
        machine.get("platform", ""),
        ", ".join(f"{name} {versions[name]}" for name in ("crosslens", "torch", "transformers") if versions.get(name)),
        f"commit {str(git['commit'])[:12]}{changed}" if git.get("commit") else "",
    ]
    return "; ".join(part for part in parts if part)


def _several(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def glance(run: StoredRun, tables: Sequence[Results], programs: Programs) -> Heat | None:
    """Task by backend: what came of it; a cell opens on its figures and on what runs it again."""
    cells = []
    for table in tables:
        mine = [cell for cell in run.cells if (cell["task"], cell["model"]) == (table.task, table.model)]
        for row in table.rows:
            if not row.control:
                cells.append(
                    _glanced(run, table, row, [cell for cell in mine if cell["backend"] == row.backend], programs)
                )
    if not cells:
        return None
    return Heat("What came of each task", ("task and model", "backend"), cells, _LEGEND)


def _glanced(run: StoredRun, table: Results, row: Row, mine: Sequence[Mapping[str, Any]], programs: Programs) -> Cell:
    state = _STATES.get(row.result.partition(" (")[0], "poor")
    details = {one_line(column): cell_text(row, column) for column in table.columns}
    details |= {f"reason, {cell['id']}": str(cell["reason"]) for cell in mine if cell.get("reason")}
    for cell in mine:
        said = [*(cell.get("log") or []), *str(cell.get("traceback") or "").splitlines()]
        details |= {f"last lines, {cell['id']}": "\n".join(said[-_MOST_LISTED:])} if said else {}
    if row.result == "skipped":
        details["reason"] = str(run.facts["arguments"]["skipped"].get(row.backend, ""))
    again = ["crosslens", "run", "--task", table.task, "--model", table.model, "--backend", row.backend]
    for option in ("suite", "seed", "device"):
        if option in run.facts["arguments"]:
            again += [f"--{option}", str(run.facts["arguments"][option])]
    key = programs.add(f"{table.task}.{table.model}.{row.backend}", shlex.join(again))
    return Cell((table.title, row.backend), state, row.result, {k: v for k, v in details.items() if v}, [key])


def overhead(tables: Sequence[Results]) -> Section | None:
    """What a call costs through each backend, task by task, on one axis."""
    timed = [table for table in tables if any(row.ratio is not None for row in table.rows)]
    if not timed:
        return None
    ratios = [row.ratio for table in timed for row in table.rows if row.ratio is not None]
    axis = span([value for ratio in ratios for value in (ratio.value, ratio.low, ratio.high)])
    panels = []
    for table in timed:
        rows = [Interval.of(r.backend, r.ratio, instead=r.result, reference=r.control) for r in table.rows]
        panels.append(intervals(table.title, rows, axis, "times the bare forward"))
    notes = [
        "Point: median ratio of a call through the backend to the bare forward on the same inputs, timed alternately. "
        "Line: 95 % bootstrap interval. All panels share one logarithmic axis.",
        "Hollow: controls, the bare forward against itself and one backend under a second name (A/A). Differences as "
        "small as theirs mean nothing. A wrong result has no time.",
    ]
    return Section("cost", "What a call costs", [Figures("Overhead of each task", {"": panels}, notes=notes)])


def tasks(tables: Sequence[AnyTable]) -> Section | None:
    """Each table of the run, its finding and notes; what all of them say is said once."""
    if not tables:
        return None
    own = [table for table in tables if isinstance(table, Results)]
    common = [line for line in own[0].legend if all(line in table.legend for table in own)] if own else []
    blocks: list[Block] = [listing(common)] if common else []
    for table in sorted(tables, key=lambda table: isinstance(table, Results)):  # the one over all of them first
        blocks += [heading(table.title), *(paragraph(f"Caution: {line}") for line in table.cautions), _table(table)]
        if table.finding:
            blocks.append(paragraph(f"Finding: {table.finding}"))
        if notes := [line for line in (*table.notes, *table.legend) if line not in common]:
            blocks.append(listing(notes))
    return Section("tasks", "Task by task", blocks, "One table for each task and model, as crosslens tables prints it.")


def _table(table: AnyTable) -> Table:
    shown = table.columns
    rows = [
        [Markup("<strong>{}</strong>").format(text) if is_best(table, row, column) else text for column, text in texts]
        for row in table.rows
        for texts in [[(column, cell_text(row, column)) for column in shown]]
    ]
    right = frozenset(i for i, column in enumerate(shown) if column.align == "right")
    return Table(table.title, [one_line(column) for column in shown], rows, right)


def every_cell(run: StoredRun) -> Section:
    """One line for each finished cell."""
    head = [
        "cell",
        "status",
        "stage",
        "reason",
        "largest error",
        "rank",
        "first call s",
        "task s",
        "peak MB",
        "whole s",
    ]
    rows = []
    for cell in run.cells:
        figures, score = cell.get("figures") or {}, cell.get("score") or {}
        peak = figures.get("peak_bytes")
        rows.append(
            [
                str(cell["id"]),
                str(cell["status"]),
                str(cell.get("stage") or ""),
                str(cell.get("reason") or ""),
                _figure(score.get("max_rel_error"), ".1e"),
                _figure(score.get("rank_agreement"), ".3f"),
                _figure(figures.get("first_call_s"), ".3g"),
                _figure(figures.get("task_s"), ".3g"),
                _figure(None if peak is None else float(peak) / 1e6, ".0f"),
                _figure(cell.get("seconds"), ".3g"),
            ]
        )
    about = f"{len(run.cells)} finished, of {len(run.facts['cells'])} planned."
    table = Table("Every cell", head, rows, frozenset(range(4, 10)))
    return Section("cells", "Every cell", [table] if rows else [paragraph("No cell has finished.")], about)


def _figure(value: Any, form: str) -> str:
    return "" if value is None else format(float(value), form)


def environment(run: StoredRun) -> Section:
    """Everything that run.json says: what it takes to repeat the run."""
    kept = {key: value for key, value in run.facts.items() if key not in ("cells",)}
    rows = [[name, value] for name, value in _flat(kept)]
    about = "run.json: what it takes to repeat the run. Of studies, each page says where it was measured."
    return Section("environment", "Environment", [Table("Environment", ["what", "value"], rows)], about)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            found += _flat(item, f"{prefix}{name}.")
        elif isinstance(item, list) and all(isinstance(each, str | int | float) for each in item):
            found.append((f"{prefix}{name}", ", ".join(map(str, item))))
        else:
            found.append((f"{prefix}{name}", item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)))
    return found
