"""One table over a whole run: what each backend got right, and what it costs, over all tasks.

Costs are compared over the cells that every compared backend has right, and over no other: a mean over the cells that
each happens to do would rank those first that refuse what is costly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from .captions import machine
from .columns import Column, ratio_text, scientific, short
from .estimate import LEVEL, Estimate, over_tasks
from .plan import AGAIN, implementation
from .rows import Row, middle
from .store import StoredRun
from .tables import Table, marked, run_names, tables

_ENOUGH = 0.5  # of the run's cells that a backend must have right for its costs to be compared


@dataclass(frozen=True)
class SummaryRow:
    """One backend over every task and model.

    Attributes:
        cells: tasks and models that the run asks of it, each once however many processes it had.
        right, wrong, unsupported: how many ended so; `other` are those that failed, crashed, ran out of memory or of
            time, proved nothing or were not run.
        compared: how many cells `ratio` and `to_hooks` are over.
        ratio: geometric mean over tasks of a call through the backend to the bare forward.
        to_hooks: the same to native hooks.
        same: the same of the second name of a backend to its first.
        error: largest error of any figure of any task, relative to the largest reference figure of its kind.
        import_s, wrap_s, first_call_s, close_s: medians over all processes that were right, seconds.
    """

    backend: str
    version: str | None
    control: bool
    cells: int
    right: int
    wrong: int
    unsupported: int
    other: int
    processes: int
    compared: int = 0
    ratio: Estimate | None = None
    to_hooks: Estimate | None = None
    same: Estimate | None = None
    error: float | None = None
    import_s: float | None = None
    wrap_s: float | None = None
    first_call_s: float | None = None
    close_s: float | None = None

    @property
    def result(self) -> str:
        """Such as `right`, or the first of what went wrong."""
        return "wrong" if self.wrong else "right" if self.right else "unsupported"

    @property
    def coverage(self) -> str:
        """Such as `12 of 14`; empty where nothing is compared."""
        return f"{self.compared} of {self.cells}" if self.ratio is not None else ""


@dataclass(frozen=True)
class Summary:
    """The table over all tasks; fields as in `Table`."""

    rows: list[SummaryRow]
    cells: int
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    best: dict[str, str] = field(default_factory=dict)
    name: str = "summary"
    task: str = "all"
    model: str = "all"
    finding: str | None = None

    @property
    def title(self) -> str:
        """Such as `summary of 14 cells`."""
        return f"summary of {_cells(self.cells)}, each a task on a model"

    @property
    def columns(self) -> list[Column]:
        """What is shown."""
        return [
            Column("backend", "backend", align="left"),
            Column("version", "version", lambda v: str(v).partition("+")[0], align="left", spare=1),
            Column("right", "right"),
            Column("wrong", "wrong"),
            Column("unsupported", "unsup-\nported"),
            Column("other", "other"),
            Column("ratio", "ratio to bare,\ngeometric mean\n[95 % over tasks]", ratio_text),
            Column("to_hooks", "ratio to hooks,\ngeometric mean\n[95 % over tasks]", ratio_text, spare=2),
            Column("coverage", "over\ncells"),
            Column("error", "largest\nerror", scientific),
            Column("import_s", "import\ns", short),
            Column("wrap_s", "wrap\ns", short),
            Column("first_call_s", "first\ncall s", short),
            Column("close_s", "close\ns", short, spare=3),
        ]


def every_table(run: StoredRun) -> list[Table | Summary]:
    """The tables of tasks, then the one over them; none of a run that has no finished cell."""
    found = tables(run)
    return [*found, summary(run, found)] if found else []


def summary(run: StoredRun, found: Sequence[Table]) -> Summary:
    """The table over all of a run's tables."""
    by_table = [{row.backend: row for row in table.rows} for table in found]
    names = run_names(run)
    rights = {name: [table.get(name, _ABSENT).result == "right" for table in by_table] for name in names}
    compared = [n for n in names if not n.endswith(AGAIN) and sum(rights[n]) >= _ENOUGH * len(found) and any(rights[n])]
    common = [i for i in range(len(found)) if compared and all(rights[name][i] for name in compared)]
    rows = [
        _row(run, name, [table[name] for table in by_table if name in table], found, common if name in compared else [])
        for name in sorted(names, key=lambda name: not name.endswith(AGAIN))
    ]
    several = [row for row in rows if row.backend in compared]
    return Summary(
        rows,
        len(found),
        notes=_notes(run, rows, compared, common, found),
        legend=machine(run),
        cautions=_cautions(rows, found),
        best=marked(several, ("ratio", "to_hooks")) if len({found[i].task for i in common}) > 1 else {},
    )


_ABSENT = Row("", None, "not run")


def _row(run: StoredRun, name: str, mine: Sequence[Row], found: Sequence[Table], common: Sequence[int]) -> SummaryRow:
    ends = [row.result for row in mine]
    right, wrong, unsupported = (sum(e.partition(" ")[0] == w for e in ends) for w in ("right", "wrong", "unsupported"))
    cells = [cell for cell in run.cells if cell["backend"] == name and cell["status"] == "right"]
    errors = [row.error for row in mine if row.error is not None]
    again = name.endswith(AGAIN)
    both = [i for i, table in enumerate(found) if _of(table, name).same is not None] if again else list(common)
    return SummaryRow(
        backend=name,
        version=next((row.version for row in mine if row.version), None),
        control=again,
        cells=len(found),
        right=right,
        wrong=wrong,
        unsupported=unsupported,
        other=len(found) - right - wrong - unsupported,
        processes=sum(row.processes for row in mine),
        compared=len(both),
        ratio=_mean(found, both, name, "ratio"),
        to_hooks=_mean(found, both, name, "to_hooks"),
        same=_mean(found, both, name, "same") if again else None,
        error=max(errors, default=None, key=lambda e: float("inf") if e != e else e),
        import_s=middle(cells, "import_s"),
        wrap_s=middle(cells, "wrap_s"),
        first_call_s=middle(cells, "first_call_s"),
        close_s=middle(cells, "close_s"),
    )


def _of(table: Table, name: str) -> Row:
    return next((row for row in table.rows if row.backend == name), _ABSENT)


def _mean(found: Sequence[Table], which: Sequence[int], name: str, key: str) -> Estimate | None:
    """Geometric mean over tasks of a row's ratio, of those on several models their geometric mean.

    The unit is the task; where there is one task alone, the model; where there is one cell alone, it is that cell's.
    None where one of the cells has no such ratio.
    """
    cells = {(found[i].task, found[i].model): getattr(_of(found[i], name), key) for i in which}
    if not cells or any(ratio is None for ratio in cells.values()):
        return None
    if len(cells) == 1:
        (only,) = cells.values()
        assert isinstance(only, Estimate)
        return only
    tasks: dict[str, list[float]] = {}
    for (task, _), ratio in cells.items():
        tasks.setdefault(task, []).append(ratio.value)
    if len(tasks) == 1:
        return over_tasks(next(iter(tasks.values())))
    return over_tasks([float(np.exp(np.mean(np.log(values)))) for values in tasks.values()])


def _cautions(rows: Sequence[SummaryRow], found: Sequence[Table]) -> list[str]:
    """Why the run is not to be trusted to the precision of its intervals."""
    cautions = []
    for row in rows:
        if row.same is None:
            continue
        who = implementation(row.backend)
        if not row.same.covers(1.0):
            cautions.append(
                f"this run is not to be trusted to the precision of its intervals: over {_cells(row.compared)} {who} "
                f"under two names differs from itself by a factor of {ratio_text(row.same)}"
            )
        each = [(table.title, _of(table, row.backend).same) for table in found]
        missed = [title for title, same in each if same is not None and not same.covers(1.0)]
        # one table in twenty misses by chance: is it more than that?
        if missed and stats.binom.sf(len(missed) - 1, row.compared, 1 - LEVEL) < 1 - LEVEL:
            cautions.append(
                f"{who} under two names differs from itself beyond its interval in {len(missed)} of {row.compared} "
                f"tables, more than the one in twenty that chance makes: {', '.join(missed)}"
            )
    return cautions


def _notes(
    run: StoredRun, rows: Sequence[SummaryRow], compared: Sequence[str], common: Sequence[int], found: Sequence[Table]
) -> list[str]:
    notes = []
    if common:
        tasks = len({found[i].task for i in common})
        scope = (
            f"over {tasks} tasks; the interval says how it would be with other tasks like these (studentised bootstrap "
            "over tasks), and is bold where it lies below all others"
            if tasks > 1
            else "of one task, over its models"
            if len(common) > 1
            else "of one cell, with its own interval"
        )
        have = "all have" if len(compared) > 1 else "has"
        notes.append(
            f"ratio: geometric mean, over the {len(common)} of {_cells(len(found))} that {_list(compared)} {have} "
            f"right, and over no other; {scope}."
        )
    if left := [row.backend for row in rows if row.backend not in compared and not row.control]:
        notes.append(f"not compared, since right in less than half of the cells: {_list(left)}.")
    for row in rows:
        if row.same is not None:
            notes.append(
                f"A/A: {implementation(row.backend)} under two names, in processes of their own, differs from itself "
                f"by a factor of {ratio_text(row.same)}, geometric mean over {_cells(row.compared)}."
            )
    notes.append(
        "right, wrong, unsupported, other: cells, each a task on a model; of several processes the worst counts. "
        "other: failed, crashed, out of memory or of time, vacuous, not run. error: the largest of any figure. "
        "import, wrap, first call, close: medians over processes."
    )
    return notes


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"
