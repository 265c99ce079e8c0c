"""Measure published figures again: `python -m crosslens.benchmarks.published --out published.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from crosslens.adapters import InputError
from crosslens.benchmarks.program import check_page, chosen, keep, keep_measured, run_program

from .catalogue import CLAIMS, groups
from .claim import Scale
from .page import latex, markdown
from .study import study


def main(
    row: Annotated[list[str] | None, typer.Option(help="an id; all of them unless told, may be repeated")] = None,
    processes: Annotated[int, typer.Option(help="for each row that is timed", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="of pairs for each timed row of a process", min=0.0)] = 0.7,
    apart: Annotated[bool, typer.Option(help="a process for each row, not for each group of rows")] = False,
    tiny: Annotated[bool, typer.Option(help="models too small to say anything, to see that it runs")] = False,
    out: Annotated[Path | None, typer.Option(help="a .md file; what was measured goes beside it as .json")] = None,
    show: Annotated[Path | None, typer.Option(help="a .json file: render it again and measure nothing")] = None,
    tex: Annotated[bool, typer.Option("--latex", help="with --show: the table for LaTeX")] = False,
) -> None:
    """Published figures about interpretability libraries: claimed, measured here, and why they differ."""
    if show is not None:
        shown = _read(show)
        print(latex(shown) if tex else markdown(shown), end="")
        return
    if tex:
        raise InputError("--latex goes with --show PAGE.json: it renders what was measured")
    names = chosen(row or [], CLAIMS, "row")
    check_page(out)
    beside = out.with_suffix(".json") if out is not None else None
    earlier = _read(beside) if beside is not None and row and beside.exists() else None
    kept: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as bar:
        once = [each for each in names if CLAIMS[each].once]
        timed = [each for each in names if not CLAIMS[each].once]
        shared = set(groups(timed, apart))
        total = len(shared) * processes + len(set(groups(once, apart)) - shared)
        task = bar.add_task("processes", total=total)
        for kept in study(names, processes, Scale(tiny, seconds), apart=apart, kept=earlier):
            bar.advance(task)
            keep_measured(out, json.dumps(kept) + "\n")
    keep(out, json.dumps(kept) + "\n", markdown(kept))


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        markdown(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds nothing that this program has kept: {error!r}") from error
    return kept


if __name__ == "__main__":
    run_program(main)
