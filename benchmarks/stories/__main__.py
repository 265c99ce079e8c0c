"""Run the stories and keep them: `python -m crosslens.benchmarks.stories --out PAGE.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from crosslens.adapters import InputError
from crosslens.tasks.parts import replace_file

from ..environment import environment
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
    if out is not None and (out.suffix != ".md" or not out.resolve().parent.is_dir()):
        console.print(f"--out {out}: name a .md file in a folder that exists", style="red", markup=False)
        raise typer.Exit(2)
    kept: dict[str, Any] = {"environment": environment(_LIBRARIES), "stories": {}}
    try:
        for name in FINDS:
            console.print(f"stories: {name} ...", markup=False)
            kept["stories"][name] = of(name)
        page = markdown(kept)
        if out is None:
            print(page, end="")
        else:
            replace_file(out.with_suffix(".json"), (to_json(kept, indent=1) + "\n").encode())
            replace_file(out, page.encode())
    except (InputError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
