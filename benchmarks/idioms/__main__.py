"""Run and measure the idioms, print the table, and keep it: `python -m crosslens.benchmarks.idioms`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.program import Parts, check_page, chosen, keep, run_program

from .catalogue import LIBRARIES, entries
from .operations import OPERATIONS
from .report import cell, libraries, markdown, of
from .running import rows

_STYLES = {"right": "green", "wrong": "bold red", "raises": "red", "impossible": "yellow"}


def main(
    library: Annotated[list[str] | None, typer.Option(help="Only this library; may be given again.")] = None,
    operation: Annotated[list[str] | None, typer.Option(help="Only this operation; may be given again.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the table in this .md file, the rows in the .json beside.")
    ] = None,
) -> None:
    """Exit status 1 where an outcome is not the one that the program's header states."""
    console = Console(width=None if sys.stdout.isatty() else 220)  # a file has no edge
    errors = Console(stderr=True)
    check_page(out)
    names = chosen(library or [], LIBRARIES, "library")
    operations = chosen(operation or [], OPERATIONS, "operation")
    parts = Parts(None if operation else out, environment([]))
    left = [name for name in names if name not in parts]
    total = sum(each.operation in operations for name in left for each in entries(name))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("idioms", total=total)
        for name in left:
            progress.update(task, description=name)
            parts.add(name, rows(name, operation or (), lambda row: progress.advance(task)))
    found: list[dict[str, Any]] = [row for name in names for row in parts[name]]
    console.print(table(found))
    if out is not None:
        keep(out, json.dumps(found, indent=1) + "\n", markdown(found))
    other = [row for row in found if row["outcome"] != row["stated"]]
    for row in other:
        errors.print(
            f"{row['library']} {row['operation']} {row['family']}: {row['outcome']}, where its header says "
            f"{row['stated']}. {row['note']}", style="red", markup=False,
        )  # fmt: skip
    raise typer.Exit(1 if other else 0)


def table(found: list[dict[str, Any]]) -> Table:
    """Operations by library."""
    names = libraries(found)
    out = Table("operation", title="logical lines of set-up + operation, and words and signs that gpt2 changes")
    for name in names:
        out.add_column(name, overflow="fold")
    for operation in OPERATIONS:
        cells = [of(found, name, operation) for name in names]
        if any(cells):
            out.add_row(operation, *(_styled(each) for each in cells))
    return out


def _styled(found: list[dict[str, Any]]) -> str:
    worst = next((name for name in reversed(_STYLES) if any(row["outcome"] == name for row in found)), "right")
    return f"[{_STYLES[worst]}]{cell(found)}[/]"


if __name__ == "__main__":
    run_program(main)
