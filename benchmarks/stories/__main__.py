"""Run the stories and keep them: `python -m crosslens.benchmarks.stories --out PAGE.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..environment import environment
from ..program import Parts, check_page, keep, run_program
from ..store import to_json
from .page import markdown
from .running import FINDS, of

_LIBRARIES = ("transformer-lens", "nnsight", "pyvene", "torchlens", "tdhook", "penzai")


def main(
    out: Annotated[
        Path | None, typer.Option(help="A .md file for the page, .json beside it for what was kept; else printed.")
    ] = None,
) -> None:
    """Run every program of examples/, and print or keep what came of it."""
    console = Console(stderr=True)
    check_page(out)
    here = environment(_LIBRARIES)
    parts = Parts(out, here)
    for name in FINDS:
        if name not in parts:
            console.print(f"stories: {name} ...", markup=False)
            parts.add(name, of(name))
    kept: dict[str, Any] = {"environment": here, "stories": {name: parts[name] for name in FINDS}}
    keep(out, to_json(kept, indent=1) + "\n", markdown(kept))


if __name__ == "__main__":
    run_program(main)
