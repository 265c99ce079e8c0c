"""Hold every backend to the reference: `python -m crosslens.benchmarks.correctness --out PAGE.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crosslens.adapters import InputError, backends
from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.program import begun, check_page, chosen, keep, keep_measured, run_program

from .design import DTYPES, THIN, Cell, design, dtypes_of, possible
from .judge import BAD
from .kept import Row, rows, text
from .running import Job, run
from .table import markdown


def main(
    backend: Annotated[list[str] | None, typer.Option(help="one; all of them unless told, may be repeated")] = None,
    only: Annotated[list[str] | None, typer.Option(help="the id of a cell, shown in full; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="a .md file; what was measured goes beside it as .json")] = None,
) -> None:
    """Ask every backend for every site by every operation; exit status 1 where something is not right."""
    names = chosen(backend or [], backends(), "backend")
    check_page(out)
    if only:
        cells = [Cell.of(each) for each in only]
        found, about = list[Row](), dict[str, dict[str, Any]]()
        for _ in measure({name: [(cell, DTYPES) for cell in cells] for name in names}, found, about):
            continue
        show(found, about)
    else:
        found, about = _kept_of_others(out, names) if backend else _cut_short(out)
        names = [name for name in names if name not in about]
        kept = _text(found, about)
        for _ in measure({name: designed(name) for name in names}, found, about):
            kept = _text(found, about)
            keep_measured(out, kept)  # each backend at once
        keep(out, kept, markdown(json.loads(kept)))
    if any(row.verdict.name in BAD for row in found):
        raise typer.Exit(1)


def _kept_of_others(out: Path | None, names: Sequence[str]) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """What lies beside the page already, of other backends than these."""
    if out is None or not out.with_suffix(".json").exists():
        return [], {}
    try:
        kept = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        others = [row for row in rows(kept) if row.backend not in names]
        return others, {name: each for name, each in kept["backends"].items() if name not in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out.with_suffix('.json')} cannot be read, so nothing can be added: {error}") from error


def _cut_short(out: Path | None) -> tuple[list[Row], dict[str, dict[str, Any]]]:
    """What a run that was cut has kept, of the backends that it was done with."""
    kept = begun(out, environment([]))
    return (list(rows(kept)), dict(kept["backends"])) if kept else ([], {})


def _text(found: Sequence[Row], about: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured, as it is kept."""
    count = len(possible())
    ordered = {name: about[name] for name in backends() if name in about}
    libraries = [each["library"] for each in ordered.values() if each["library"]]
    return text(found, environment(libraries), (count, count * len(DTYPES)), ordered)


def designed(name: str) -> list[Job]:
    """The cells that are run through a backend, each with its dtypes."""
    return [(cell, dtypes_of(name, cell)) for cell in design(name)]


def measure(jobs: Mapping[str, Sequence[Job]], found: list[Row], about: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Ask one backend after the other; gives the name of each when it is done, with a bar on stderr.

    Args:
        jobs: backend -> cells with their dtypes.
        found: gets the verdicts.
        about: gets what each backend is.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("cells", total=sum(map(len, jobs.values())))
        for name, own in jobs.items():
            about[name] = {"strength": 2 if name in THIN else 3}
            done = 0
            for verdicts in run(name, own, about[name]):
                found += verdicts
                done += 1
                progress.update(bar, advance=1, description=name)
            progress.advance(bar, len(own) - done)
            yield name


def show(found: Sequence[Row], about: Mapping[str, Mapping[str, Any]]) -> None:
    """Every figure of some cells."""
    for name, each in about.items():
        if each["missing"]:
            print(f"{name}: {each['missing']}")
    for row in found:
        verdict, far = row.verdict, row.verdict.distance
        print(f"{row.backend} {row.cell.id} {row.dtype}: {verdict.name}{f' ({verdict.why})' if verdict.why else ''}")
        if far is not None:
            where = f", in the arithmetic of {verdict.arithmetic}" if verdict.arithmetic else ""
            print(
                f"    {far.part or 'all'}: relative {far.relative:.3g}, absolute {far.absolute:.3g}, cosine "
                f"{far.cosine:.9g}, factor {far.scale:.9g}; rounding makes {verdict.floor:.2g}{where}"
            )


if __name__ == "__main__":
    run_program(main)
