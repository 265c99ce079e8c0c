"""Run and measure the idioms, print the table, and keep it: `python -m crosslens.benchmarks.idioms`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crosslens.adapters.errors import InputError

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
    """Exit status 1 where an outcome is not the one that the program's header states, 2 for wrong usage."""
    console = Console(width=None if sys.stdout.isatty() else 220)  # a file has no edge
    errors = Console(stderr=True)
    for given, known, what in ((library, LIBRARIES, "library"), (operation, OPERATIONS, "operation")):
        for name in given or ():
            if name not in known:
                errors.print(f"no {what} {name!r}; there are {', '.join(known)}", style="red")
                raise typer.Exit(2)
    if out is not None and (out.suffix != ".md" or not out.parent.is_dir()):
        errors.print(f"--out {out}: name a .md file in a folder that exists", style="red")
        raise typer.Exit(2)
    chosen = library or list(LIBRARIES)
    try:
        total = sum(not operation or each.operation in operation for name in chosen for each in entries(name))
    except InputError as error:
        errors.print(str(error), style="red")
        raise typer.Exit(2) from None
    found: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("idioms", total=total)
        for name in chosen:
            progress.update(task, description=name)
            found += rows(name, operation or (), lambda row: progress.advance(task))
    console.print(table(found))
    if out is not None:
        try:
            _keep(out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
            _keep(out, markdown(found))
        except OSError as error:
            errors.print(f"--out {out} cannot be written, what was there stays: {error}", style="red", markup=False)
            raise typer.Exit(2) from None
    other = [row for row in found if row["outcome"] != row["stated"]]
    for row in other:
        errors.print(
            f"{row['library']} {row['operation']} {row['family']}: {row['outcome']}, where its header says "
            f"{row['stated']}. {row['note']}", style="red", markup=False,
        )  # fmt: skip
    raise typer.Exit(1 if other else 0)


def _keep(path: Path, text: str) -> None:
    """Write a file whole, or leave what is there."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
    typer.run(main)
