"""Measure what crosslens' own work costs: `python -m crosslens.benchmarks.costs --out costs.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.fresh import compact
from crosslens.benchmarks.program import check_page, chosen, keep, run_program

from .page import markdown
from .parts import PARTS, jobs, missing
from .running import collect

_LIBRARIES = ("comgra", "nnsight", "pyvene", "transformer-lens")


def main(
    out: Annotated[
        Path | None,
        typer.Option(
            help="a .md file; what was measured goes beside it as .json, and what that has of the same settings is not "
            "measured again: remove it to begin anew"
        ),
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option(help=f"only these of {', '.join(PARTS)}; others stay as they were kept")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="of each part that is timed")] = 3,
    rounds: Annotated[int, typer.Option(min=0, help="in each process; 0: of each part its own, 1 or 2")] = 0,
    quick: Annotated[bool, typer.Option(help="one process and round of tiny models, to see that it runs")] = False,
) -> None:
    """What key figures, `compare`, the `Recorder` and `sweep` cost, and what they stand in for."""
    check_page(out)
    names, left_out = chosen(part or [], PARTS, "part"), missing()
    settings: dict[str, Any] = {"threads": 1, "left_out": left_out}
    asked = jobs(names, 1 if quick else processes, 1 if quick else rounds or None, quick, list(left_out))
    kept = collect(asked, {"environment": environment(_LIBRARIES), "settings": settings}, out)
    keep(out, compact(kept), markdown(kept))


if __name__ == "__main__":
    run_program(main)
