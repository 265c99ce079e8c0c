"""The tables of a run, computed from what its folder holds and from nothing else.

One table for each task and model: a row for each backend, after the controls, which are the bare forward timed against
itself and one backend run under a second name (A/A). `summary.py` has the table over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .captions import cautions, legend, notes
from .columns import Column, cell_text, ratio_text, scientific, short, whole
from .estimate import Estimate, best
from .plan import AGAIN
from .rows import CONTROL, Row, backend_row, bare_row
from .store import StoredRun

__all__ = ["CONTROL", "Column", "Row", "Table", "cell_text", "columns", "marked", "ratio_text", "tables"]


@dataclass(frozen=True)
class Table:
    """A task on a model, over all backends.

    Attributes:
        name: of its files.
        finding: what the task says of the model, in one line.
        cautions: why the figures are not to be trusted as far as they look.
        notes: what a reader must know of these rows.
        legend: what the figures are, and where they come from.
        best: key of a column -> the backend whose interval lies below those of all others.
    """

    name: str
    task: str
    model: str
    rows: list[Row]
    finding: str | None
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    best: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Such as `ioi on smollm2-135m`."""
        return f"{self.task} on {self.model}"

    @property
    def columns(self) -> list[Column]:
        """What is shown; headers say what intervals are over."""
        scope = "interval" if any(row.processes > 1 for row in self.rows) else "within one process"
        return [
            Column("backend", "backend", align="left"),
            # without a build such as +cpu
            Column("version", "version", lambda v: str(v).partition("+")[0], align="left", spare=1),
            Column("result", "result", align="left"),
            Column("error", "largest\nerror", scientific),
            Column("rank", "rank", lambda v: f"{v:.3f}", spare=4),
            Column("ratio", f"ratio to bare\n[95 % {scope}]", ratio_text),
            Column("to_hooks", f"ratio to hooks\n[95 % {scope}]", ratio_text, spare=3),
            Column("import_s", "import\ns", short),
            Column("wrap_s", "wrap\ns", short),
            Column("first_call_s", "first\ncall s", short),
            Column("task_s", "task\ns", short),
            Column("close_s", "close\ns", short, spare=5),
            Column("peak_mb", "peak\nMB", whole),
            Column("rise_mb", "rise\nMB", whole, spare=2),
            Column("device_mb", "GPU\nMB", whole, missing="not measured", spare=6),
        ]


def columns(table: Table) -> list[Column]:
    """The columns of a table."""
    return table.columns


def tables(run: StoredRun) -> list[Table]:
    """Every table of a task and a model, in the order of the run's arguments, of the cells that have finished.

    A task that brings its own model has its table too, though the run was asked for other models.
    """
    asked = run.facts["arguments"]
    found = []
    for task in asked["tasks"]:
        mine = [cell for cell in run.cells if cell["task"] == task]
        for model in dict.fromkeys((*asked["models"], *(cell["model"] for cell in mine))):
            if cells := [cell for cell in mine if cell["model"] == model]:
                found.append(_table(run, task, model, cells))
    return found


def _table(run: StoredRun, task: str, model: str, cells: Sequence[dict[str, Any]]) -> Table:
    asked = run.facts["arguments"]
    reference = next((cell for cell in cells if cell["kind"] == "reference"), None)
    rows = [] if reference is None or reference["status"] != "done" else [bare_row(run, reference)]
    again = [name for name in run_names(run) if name.endswith(AGAIN)]
    rows += [backend_row(run, name, cells) for name in (*again, *asked["backends"])]
    rows += [Row(backend, None, "skipped") for backend in asked["skipped"]]
    return Table(
        name=".".join(cells[0]["id"].split(".")[:2]),
        task=task,
        model=model,
        rows=rows,
        finding=reference.get("headline") if reference is not None else None,
        notes=notes(run, cells, rows),
        legend=legend(run, cells, rows),
        cautions=cautions(rows),
        # what differs between processes is in no interval of one: none separates backends
        best=marked([row for row in rows if not row.control and row.processes > 1], ("ratio", "to_hooks")),
    )


def run_names(run: StoredRun) -> list[str]:
    """The names under which backends ran, each once: those of the arguments, and the second name of one."""
    ran = (cell["backend"] for cell in run.cells if cell["backend"] is not None)
    return list(dict.fromkeys((*run.facts["arguments"]["backends"], *ran)))


def marked(rows: Sequence[Any], keys: Sequence[str]) -> dict[str, str]:
    """Key of a column -> the backend whose interval lies below those of all others, where there is one."""
    found = {}
    for key in keys:
        estimates: list[Estimate | None] = [getattr(row, key) for row in rows]
        if (index := best(estimates)) is not None:
            found[key] = str(rows[index].backend)
    return found
