"""The tables of a run, computed from what its folder holds and from nothing else.

One table for each task and model: a row for each backend, after a row for the control, the bare forward timed against
itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from .estimate import Estimate, median_ratio
from .store import StoredRun

CONTROL = "bare (control)"
# Of several processes, the outcome that a reader must know of comes first.
_WORST_FIRST = ("wrong", "crashed", "out-of-memory", "timeout", "failed", "vacuous", "unsupported", "right")
_SLOWED = 1.25  # a wrapped model's own forward that is slower than this is worth a footnote

_BUSY = 0.5  # load for each core from which other work must have been going on


@dataclass(frozen=True)
class Row:
    """One backend on one task and model; a figure that was not measured, or is withheld, is None.

    Attributes:
        processes: how many the figures are of.
        error: largest error of any figure, relative to the largest reference figure of its kind.
        rank: Spearman's correlation with the reference's ranking.
        ratio: of a call through the backend to the bare forward.
        import_s, wrap_s, first_call_s, task_s: medians over processes, seconds.
        peak_mb, rise_mb: largest resident memory; largest rise over the loaded model. MB are 10^6 bytes.
    """

    backend: str
    version: str | None
    result: str
    processes: int = 0
    pairs: int = 0
    error: float | None = None
    rank: float | None = None
    ratio: Estimate | None = None
    import_s: float | None = None
    wrap_s: float | None = None
    first_call_s: float | None = None
    task_s: float | None = None
    close_s: float | None = None
    peak_mb: float | None = None
    rise_mb: float | None = None


@dataclass(frozen=True)
class Table:
    """A task on a model, over all backends.

    Attributes:
        name: of its files.
        finding: what the task says of the model, in one line.
        notes: what a reader must know of these rows.
        legend: what the figures are, and where they come from.
    """

    name: str
    task: str
    model: str
    rows: list[Row]
    finding: str | None
    notes: list[str] = field(default_factory=list)
    legend: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Such as `ioi on smollm2-135m`."""
        return f"{self.task} on {self.model}"


def tables(run: StoredRun) -> list[Table]:
    """Every table of a run, in the order of its arguments; cells that have not finished are left out.

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
    rows = [] if reference is None or reference["status"] != "done" else [_control(run, reference)]
    for backend in asked["backends"]:
        mine = [cell for cell in cells if cell["backend"] == backend]
        rows.append(_row(run, backend, mine) if mine else Row(backend, None, "not run"))
    rows += [Row(backend, None, "skipped") for backend in asked["skipped"]]
    finding = reference.get("headline") if reference is not None else None
    name = ".".join(cells[0]["id"].split(".")[:2])
    return Table(name, task, model, rows, finding, _notes(run, cells, rows), _legend(run, rows))


def _control(run: StoredRun, reference: dict[str, Any]) -> Row:
    ratios = _ratios(run, [reference])
    return Row(
        CONTROL,
        run.facts["environment"]["versions"]["torch"],
        "",
        processes=1,
        pairs=sum(map(len, ratios)),
        ratio=median_ratio(ratios) if ratios else None,
    )


def _row(run: StoredRun, backend: str, cells: Sequence[dict[str, Any]]) -> Row:
    worst = min((cell["status"] for cell in cells), key=_WORST_FIRST.index)
    count = sum(cell["status"] == worst for cell in cells)
    right = worst == "right"
    ratios = _ratios(run, cells) if right else []
    scores = [cell["score"] for cell in cells if "score" in cell]
    return Row(
        backend,
        next((cell["version"] for cell in cells if cell.get("version")), None),
        worst if count == len(cells) else f"{worst} ({count} of {len(cells)})",
        processes=len(cells),
        pairs=sum(map(len, ratios)),
        error=max((float(score["max_rel_error"]) for score in scores), default=None, key=_nan_last),
        rank=min((float(score["rank_agreement"]) for score in scores), default=None, key=_nan_first),
        ratio=median_ratio(ratios) if ratios else None,
        import_s=_middle(cells, "import_s"),
        wrap_s=_middle(cells, "wrap_s"),
        # A wrong result has no time.
        first_call_s=_middle(cells, "first_call_s") if right else None,
        task_s=_middle(cells, "task_s") if right else None,
        close_s=_middle(cells, "close_s"),
        peak_mb=_megabytes(_largest(cells, "peak_bytes")),
        rise_mb=_megabytes(_largest(cells, "rise_bytes")),
    )


def _nan_last(value: float) -> float:
    return float("inf") if value != value else value


def _nan_first(value: float) -> float:
    return float("-inf") if value != value else value


def _ratios(run: StoredRun, cells: Sequence[dict[str, Any]]) -> list[Any]:
    """For each cell's process, the ratio of each pair of samples."""
    groups = []
    for cell in cells:
        mine = run.samples[run.samples["cell"] == cell["id"]]
        if len(mine):
            groups.append(np.asarray(mine["step_s"] / mine["bare_s"], dtype=np.float64))
    return groups


def _figures(cells: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(cell["figures"][name]) for cell in cells if cell["figures"].get(name) is not None]


def _middle(cells: Sequence[dict[str, Any]], name: str) -> float | None:
    values = _figures(cells, name)
    return statistics.median(values) if values else None


def _largest(cells: Sequence[dict[str, Any]], name: str) -> float | None:
    return max(_figures(cells, name), default=None)


def _megabytes(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _notes(run: StoredRun, cells: Sequence[dict[str, Any]], rows: Sequence[Row]) -> list[str]:
    """What went wrong, and what the figures do not show."""
    notes = []
    for backend, reason in run.facts["arguments"]["skipped"].items():
        notes.append(f"{backend} was skipped: {reason}")
    for cell in cells:
        name = cell["backend"] or "the reference"
        if known := cell.get("known"):
            holds = "which the reference shows" if known["holds"] else "which the reference does NOT show"
            notes.append(f"known: {known['fact']}, {holds}: {known['found']}")
        if cell["status"] not in ("right", "done"):
            notes.append(f"{name}: {cell['status']}: {cell['reason']}")
        elif cell.get("reason"):
            notes.append(f"{name}: {cell['reason']}")
        slowed = _slowed(run, cell)
        if slowed is not None and slowed > _SLOWED:
            notes.append(
                f"{name}: the bare forward took {slowed:.2f} times as long while it was open as before: it slows the "
                "model even where it is not used, or the machine was disturbed; the ratio is to the forward while open"
            )
    control = next((row.ratio for row in rows if row.backend == CONTROL), None)
    if control is not None and not control.covers(1.0):
        notes.append(
            f"the control does not cover 1 ({ratio_text(control)}): overheads of that size mean nothing in this run"
        )
    if cells[0]["model"] in run.facts["random_models"]:
        notes.append(f"{cells[0]['model']} has random weights: its finding says nothing about language")
    missing = [row.backend for row in rows if row.result == "not run"]
    if missing:
        notes.append(f"the run was stopped before {', '.join(missing)}")
    return list(dict.fromkeys(notes))


def _slowed(run: StoredRun, cell: dict[str, Any]) -> float | None:
    """How much slower the bare forward is while the backend is open than before it was."""
    alone = cell["figures"].get("bare_alone_s")
    mine = run.samples[run.samples["cell"] == cell["id"]]
    return float(mine["bare_s"].median()) / float(alone) if alone and len(mine) else None


def _legend(run: StoredRun, rows: Sequence[Row]) -> list[str]:
    """What the figures are and where they come from."""
    asked, machine = run.facts["arguments"], run.facts["environment"]
    notes = []
    timed = [row for row in rows if row.ratio is not None]
    if timed:
        backends = [row for row in timed if row.backend != CONTROL] or timed
        counts = sorted({row.pairs for row in backends})
        pairs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        most = max(row.processes for row in timed)
        scope = (
            "over the pairs within one process, so without what differs between processes"
            if most == 1
            else f"over {most} processes and the pairs within each"
        )
        notes.append(
            f"ratio: one call through the backend over the bare forward on the same inputs, timed alternately; median "
            f"of {pairs} pairs with a 95 % bootstrap interval {scope}. A wrong result has no time."
        )
    notes.append(
        "error: largest, relative to the largest reference figure of its kind. rank: Spearman's correlation with the "
        "reference's ranking."
    )
    notes.append(
        "import: beyond torch, transformers and the task. wrap: opening the backend on the loaded model. first call: "
        "on a model already warm. task: the whole task once. peak: resident memory of the process, with the model."
    )
    versions = machine["versions"]
    cores = machine["cores"]["physical"] or machine["cores"]["logical"]
    load = machine["load_average"][0]
    jobs = asked.get("jobs", 1)
    beside = f", {jobs} cells at a time, each on cores of its own" if jobs > 1 else ""
    if load > _BUSY * cores:
        notes.append(
            f"the machine was busy when the run started (load {load:.1f} on {cores} cores): expect wide intervals"
        )
    notes.append(
        f"{machine['cpu']}, {cores} cores, {asked['threads']} threads{beside}, load {load:.1f} at the "
        f"start; torch {versions['torch']}, transformers {versions['transformers']}; {asked['dtype']}, "
        f"{asked['attn_implementation']} attention."
    )
    return notes


# ---- columns


def ratio_text(ratio: Estimate) -> str:
    """Such as `1.042 [1.031, 1.055]`, with digits enough to see whether it covers 1."""
    value, low, high = (f"{v:.3f}" if v < 10 else f"{v:.1f}" for v in (ratio.value, ratio.low, ratio.high))
    return f"{value} [{low}, {high}]"


def _short(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


@dataclass(frozen=True)
class Column:
    """A column of the rendered tables; `wide` ones are left out where there is no room.

    A header breaks into lines on a terminal only.
    """

    key: str
    header: str
    text: Callable[[Any], str] = str
    align: Literal["left", "right"] = "right"
    wide: bool = False


COLUMNS = (
    Column("backend", "backend", align="left"),
    Column("version", "version", lambda v: v.partition("+")[0], align="left"),  # without a build such as +cpu
    Column("result", "result", align="left"),
    Column("error", "largest\nerror", lambda v: f"{v:.1e}"),
    Column("rank", "rank", lambda v: f"{v:.3f}"),
    Column("ratio", "ratio to bare [95 %\nwithin one process]", ratio_text),
    Column("import_s", "import\ns", _short),
    Column("wrap_s", "wrap\ns", _short),
    Column("first_call_s", "first\ncall s", _short),
    Column("task_s", "task\ns", _short),
    Column("peak_mb", "peak\nMB", lambda v: f"{v:.0f}"),
    Column("rise_mb", "rise\nMB", lambda v: f"{v:.0f}", wide=True),
)


def columns(table: Table) -> list[Column]:
    """The columns of a table; their headers say what its intervals are over."""
    if all(row.processes <= 1 for row in table.rows):
        return list(COLUMNS)
    several = "ratio to bare\n[95 % interval]"
    return [replace(column, header=several) if column.key == "ratio" else column for column in COLUMNS]


def cell_text(row: Row, column: Column) -> str:
    """What a table shows of a row in a column; empty where there is nothing to show."""
    value = getattr(row, column.key)
    return "" if value is None else column.text(value)
