"""`crosslens run` and `crosslens tables`: arguments in, a folder and tables out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crosslens.adapters import InputError

from . import progress
from .plan import Plan, fetch_models, known, make_plan
from .render import FORMATS, data, show, write
from .run import execute, facts
from .store import RunFolder, read_facts, read_run, refuse_out, to_json
from .studies import STUDIES, run_study, write_pages
from .tables import Table, tables


def run_command(
    suite: str | None,
    *,
    backend: Sequence[str],
    task: Sequence[str],
    model: Sequence[str],
    repeats: int | None,
    timeout: float | None,
    seed: int | None,
    jobs: int | None,
    study: Sequence[str],
    out: Path,
    resume: bool,
    as_json: bool,
) -> int:
    """`crosslens run`: check everything, run, render and print; returns the exit status.

    Raises:
        CrosslensError: before any work, for arguments or a folder that cannot be used.
    """
    err = Console(stderr=True)
    given: dict[str, Any] = {
        "backend": backend,
        "task": task,
        "model": model,
        "repeats": repeats,
        "timeout": timeout,
        "jobs": jobs,
        "study": study,
    }
    if resume:
        if named := [
            name for name, value in {**given, "suite": suite, "seed": seed}.items() if value not in (None, ())
        ]:
            raise InputError(f"--resume takes its settings from {out / 'run.json'}; leave out --{named[0]}")
        plan = Plan.of(read_facts(out)["arguments"])
    else:
        plan = make_plan(suite or "default", **given, seed=seed or 0)
        refuse_out(out)
    fetch_models({model for _, model in plan.pairs()})
    folder = RunFolder.resume(out, facts(plan)) if resume else RunFolder(out, facts(plan))
    for name, reason in plan.skipped.items():
        err.print(f"{name} is skipped: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        with progress.show(err, len(plan.cells()) - len(folder.finished)) as told:
            good = execute(plan, folder, told)
        for name in plan.studies:
            err.print(f"{name}: {STUDIES[name].about} ...", markup=False, highlight=False, soft_wrap=True)
            if wrong := run_study(name, out / "studies"):
                err.print(f"{name}: {wrong}", style="red", markup=False, highlight=False, soft_wrap=True)
                good = False
    except KeyboardInterrupt:
        kept = len(read_run(out).cells)
        err.print(
            f"stopped: the {kept} cells that had finished are kept in {out}; `crosslens tables {out}` shows them, and "
            f"`crosslens run --resume --out {out}` goes on",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 130
    finally:
        folder.close()
    rendered = tables(read_run(out))
    files = write(rendered, out / "tables") + write_pages(out)
    if as_json:
        print(to_json({"out": str(out), "tables": data(rendered)}, indent=2))
    else:
        _print(rendered, files)
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
    _print(rendered, write(rendered, folder / "tables") + write_pages(folder))


def _print(rendered: Sequence[Table], files: Sequence[Path]) -> None:
    """The tables, then where they are."""
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width: let no column be cut
    show(console, rendered)
    console.print("\nThe tables are in")
    for path in files:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
