"""`crosslens run` and `crosslens tables`: arguments in, a folder and tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from . import progress
from .plan import fetch_models, known, make_plan
from .render import FORMATS, data, show, write
from .run import execute, facts
from .store import RunFolder, read_run, refuse_out, to_json
from .tables import tables


def run_command(
    suite: str,
    *,
    backend: Sequence[str],
    task: Sequence[str],
    model: Sequence[str],
    repeats: int | None,
    timeout: float | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> int:
    """`crosslens run`: check everything, run, render and print; returns the exit status.

    Raises:
        CrosslensError: before any work, for arguments or a folder that cannot be used.
    """
    err = Console(stderr=True)
    plan = make_plan(suite, backend=backend, task=task, model=model, repeats=repeats, timeout=timeout, seed=seed)
    refuse_out(out)
    fetch_models(plan.models)
    folder = RunFolder(out, facts(plan))
    for name, reason in plan.skipped.items():
        err.print(f"{name} is skipped: {reason}", style="yellow", markup=False, highlight=False)
    try:
        with progress.show(err, len(plan.cells())) as told:
            good = execute(plan, folder, told)
    except KeyboardInterrupt:
        kept = len(read_run(out).cells)
        err.print(
            f"stopped: the {kept} cells that had finished are kept in {out}; `crosslens tables {out}` shows them",
            markup=False,
            highlight=False,
        )
        return 130
    rendered = tables(read_run(out))
    files = write(rendered, out / "tables")
    if as_json:
        print(to_json({"out": str(out), "tables": data(rendered)}, indent=2))
    else:
        show(Console(), rendered)
    err.print(
        f"\ntables: {', '.join(str(path) for path in files if path.suffix == '.md')}", markup=False, highlight=False
    )
    return 0 if good else 1


def tables_command(folder: Path, form: str | None) -> None:
    """`crosslens tables`: render again what a run's folder holds.

    Raises:
        InputError: an unknown format, or a folder that holds no whole run.
    """
    if form is not None:
        known("format", form, FORMATS)
    rendered = tables(read_run(folder))
    if form is not None:
        print(FORMATS[form](rendered), end="")
        return
    show(Console(), rendered)
    for path in write(rendered, folder / "tables"):
        print(path)
