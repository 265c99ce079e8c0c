"""Make every mistake with every library: `python -m crosslens.benchmarks.mistakes [--out FILE]`."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .catalogue import BY_NAME, MISTAKES
from .judge import Outcome
from .programs import LIBRARIES, programs
from .table import counts, table

SECONDS = 1800
"""How long all the mistakes of one library may take."""


def of(library: str, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Outcomes of one library, from a process that has imported no other.

    A process that dies leaves an outcome for each mistake that it did not come to.
    """
    command = [sys.executable, "-m", f"{__package__}.one", library, *names]
    left = list(names) or [mistake.name for mistake in MISTAKES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("{"):
                outcome = Outcome(**json.loads(line))
                left.remove(outcome.mistake)
                yield outcome
        last = process.stderr.read().strip().rpartition("\n")[2]
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
    if out is not None and not (out.resolve().parent.is_dir() and os.access(out.resolve().parent, os.W_OK)):
        raise typer.BadParameter(f"{out}: its folder must exist and be writable")
    libraries, names = _known(library, LIBRARIES, "library"), _known(mistake, BY_NAME, "mistake")
    console, found = Console(stderr=True), []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("mistakes", total=len(libraries) * len(names))
        for each in libraries:
            for outcome in of(each, names):
                found.append(outcome)
                progress.update(bar, advance=1, description=f"{each}: {outcome.mistake}")
    versions = {each: programs(each).version for each in libraries}
    text = table(found, versions)
    if out is not None:
        kept: dict[str, Any] = {"versions": versions, "outcomes": [each.as_dict() for each in found]}
        _keep(out.with_suffix(".json"), json.dumps(kept, indent=1) + "\n")
        _keep(out, text)
    print(text)
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


def _keep(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.resolve().parent, delete=False) as part:
        try:
            part.write(text)
            part.close()
            Path(part.name).chmod(0o644)
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def _known(given: list[str] | None, known: Any, what: str) -> list[str]:
    for name in given or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or list(known)
            raise typer.BadParameter(f"no {what} {name!r}; nearest: {', '.join(near)}")
    return given or list(known)


if __name__ == "__main__":
    typer.run(main)
