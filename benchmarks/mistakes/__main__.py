"""Make every mistake with every library: `python -m crosslens.benchmarks.mistakes [--out FILE]`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.program import Parts, check_page, chosen, keep, run_program

from .catalogue import BY_NAME, MISTAKES
from .judge import Outcome
from .programs import LIBRARIES, programs
from .table import counts, table


def of(library: str, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Outcomes of one library, from a process that has imported no other.

    A process that dies leaves an outcome for each mistake that it did not come to.
    """
    command = [sys.executable, "-m", f"{__package__}.one", library, *names]
    left = list(names) or [mistake.name for mistake in MISTAKES]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                outcome = Outcome(**json.loads(line))
                left.remove(outcome.mistake)
                yield outcome
        process.wait()
        said.seek(0)
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    for name in left:
        yield Outcome(library, name, "error", says=f"the process ended before: {last}")


def main(
    library: Annotated[list[str] | None, typer.Option(help="Row of the table; all by default.")] = None,
    mistake: Annotated[list[str] | None, typer.Option(help="Name of a mistake; all by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Markdown to write; a .json of the same name goes beside it.")
    ] = None,
) -> None:
    """Make mistakes and print what came of them."""
    check_page(out)
    libraries, names = chosen(library or [], LIBRARIES, "library"), chosen(mistake or [], BY_NAME, "mistake")
    console, parts = Console(stderr=True), Parts(None if mistake else out, environment([]))
    left = [each for each in libraries if each not in parts]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("mistakes", total=len(left) * len(names))
        for each in left:
            outcomes = []
            for outcome in of(each, names):
                outcomes.append(outcome.as_dict())
                progress.update(bar, advance=1, description=f"{each}: {outcome.mistake}")
            parts.add(each, outcomes)
    found = [Outcome(**outcome) for each in libraries for outcome in parts[each]]
    versions = {each: programs(each).version for each in libraries}
    kept: dict[str, Any] = {"versions": versions, "outcomes": [each.as_dict() for each in found]}
    keep(out, json.dumps(kept, indent=1) + "\n", table(found, versions))
    bad = [
        kind
        for name, tally in counts(found).items()
        if name.startswith("crosslens")
        for kind in tally
        if kind in ("error", "warned", "silent")
    ]
    if bad:
        console.print(f"crosslens: {', '.join(bad)}; its rows must be refused or right")
        raise typer.Exit(1)


if __name__ == "__main__":
    run_program(main)
