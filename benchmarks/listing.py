"""`crosslens models`, `backends` and `tasks`: what there is."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosslens.adapters import CAPABILITIES
from crosslens.tasks import known_models, tasks

from .matrix import FORMATS, LEGEND, MARKS, matrix, reasons, state
from .plan import known
from .store import to_json


def list_models(as_json: bool) -> None:
    """Print the models known by name."""
    found = [asdict(entry) for entry in known_models()]
    if as_json:
        print(to_json(found, indent=2))
        return
    grid = _grid("model", "family", "layers", "parameters", "cached", "weights")
    for entry in known_models():
        grid.add_row(
            entry.name,
            entry.family,
            str(entry.layers),
            f"{entry.parameters:,}",
            "yes" if entry.cached else "no",
            f"{'trained' if entry.kind == 'real' else 'random'}, {entry.source}",
        )
    for column in grid.columns[:-1]:
        column.no_wrap = True
    Console().print(grid)


def list_backends(form: str | None, folder: Path | None) -> None:
    """Print the backends, their versions, and what the conformance kit found that each can do.

    Raises:
        InputError: an unknown format, or kept outcomes that cannot be read.
    """
    if form is not None:
        known("format", form, FORMATS)
    found = matrix(folder)
    if form is not None:
        print(FORMATS[form](found), end="")
        return
    console = Console() if sys.stdout.isatty() else Console(width=160)  # a log has no width: let no column be cut
    grid = _grid("backend", "library", "installed", "checked", "checks passed", "failed as they must", "capabilities")
    for column in found:
        kept = column.outcomes
        able = sum(state(column, name) in ("supported", "most") for name in CAPABILITIES)
        grid.add_row(
            column.name,
            column.library or (kept.library if kept else ""),
            column.version or "no",
            kept.version if kept else "never",
            str(kept.passed) if kept else "",
            str(kept.xfailed) if kept else "",
            f"{able} of {len(CAPABILITIES)}" if kept else "",
        )
    console.print(grid)
    checked = [column for column in found if column.outcomes]
    table = _grid("capability", *(column.name.replace("_", "\n") for column in checked))
    for name in CAPABILITIES:
        table.add_row(name, *(MARKS.get(state(column, name) or "", "?") for column in checked))
    console.print(table)
    legend = "; ".join(f"{MARKS[name]}: {meaning}" for name, meaning in LEGEND.items())
    for line in [legend, *reasons(found), *(column.problem for column in found if column.problem)]:
        console.print(Text(line, style="dim"))


def list_tasks(as_json: bool) -> None:
    """Print the tasks."""
    found = [
        {
            "name": task.name,
            "question": task.question,
            "categories": task.categories,
            "source": task.source,
            "data": task.data,
            "needs": [*task.needs, *filter(None, [" | ".join(" + ".join(way) for way in task.needs_any)])],
            "models": dict(task.models),
            "least_effect": task.least_effect,
        }
        for task in tasks()
    ]
    if as_json:
        print(to_json(found, indent=2))
        return
    width = max(len(task.name) for task in tasks())
    for task in tasks():  # one line each, whatever the width of the terminal: --json has the rest
        print(f"{task.name:{width}}  {task.question}")


def _grid(*headers: str) -> Table:
    grid = Table(*headers, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    grid.columns[0].no_wrap = True
    return grid
