"""`crosslens run`, `tables` and `diff`: arguments in, a folder and tables out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from crosslens.adapters import InputError

from . import progress
from .difference import MEANINGS, counted, differences
from .environment import threads
from .executors import NO_TIMING, executor, joined
from .plan import Plan, fetch_models, known, make_plan
from .render import FORMATS, AnyTable, data, write
from .run import execute, facts
from .store import RunFolder, apart, go_on, read_facts, read_run, refuse_out, to_json
from .studies import missing, run_studies, write_pages
from .summary import every_table
from .terminal import show


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
    device: str | None,
    timing: bool,
    where: str | None,
    ray_address: str | None,
    out: Path,
    resume: bool,
    as_json: bool,
) -> int:
    """`crosslens run`: check everything, run, render and print; returns the exit status.

    Args:
        where: the executor; None for `local`, or that of the run that is gone on with.

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
        "device": device,
    }
    if resume:
        if named := [
            name
            for name, value in {
                **{name: value for name, value in given.items() if name not in ("repeats", "study")},
                "suite": suite,
                "seed": seed,
                "executor": where,
                "no-timing": None if timing else True,
            }.items()
            if value not in (None, ())
        ]:
            raise InputError(f"--resume takes its settings from {out / 'run.json'}; leave out --{named[0]}")
        kept = read_facts(out)
        plan, where = Plan.of(kept["arguments"]).grown(repeats, study), kept.get("executor", "local")
    else:
        where = where or "local"
        plan = _where(make_plan(suite or "default", **given, seed=seed or 0), where, jobs, timing)
        refuse_out(out)
    with joined(where, ray_address, plan):
        return _run(plan, where, out, resume, as_json, err)


def _where(plan: Plan, where: str, jobs: int | None, timing: bool) -> Plan:
    """The plan as this executor runs it."""
    if where == "ray":
        if jobs is not None:
            raise InputError("--jobs is of --executor local: on Ray a cell that is timed has a node to itself")
        plan = replace(plan, jobs=1, warm=False)
    return plan if timing else replace(plan, sampling=NO_TIMING)


def _run(plan: Plan, where: str, out: Path, resume: bool, as_json: bool, err: Console) -> int:
    """Run a plan that is checked."""
    fetch_models({model for _, model in plan.pairs()})
    now = facts(plan, where)
    folder = RunFolder.resume(out, now) if resume else RunFolder(out, now)
    for name, reason in plan.skipped.items():
        err.print(f"{name} is skipped: {reason}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    try:
        with (
            progress.show(err, len(plan.cells()) - len(folder.finished)) as told,
            executor(where, plan, folder, told, now["environment"]) as cells,
        ):
            good = execute(plan, folder, told, cells)
        if studies := missing(plan.studies, out / "studies"):
            with progress.show(err, len(studies), "studies") as told:
                good = run_studies(studies, out / "studies", told, threads()) and good
    except KeyboardInterrupt:
        err.print(
            f"stopped: the {len(folder.finished)} cells that had finished are kept in {out}; `crosslens tables "
            f"{shlex.quote(str(out))}` shows them, and `{go_on(out)}` goes on",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 130
    finally:
        folder.close()
    rendered = every_table(read_run(out))
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
    rendered = every_table(read_run(folder))
    if form is not None:
        print(FORMATS[form](rendered), end="")
        return
    _print(rendered, write(rendered, folder / "tables") + write_pages(folder))


def diff_command(first: Path, second: Path, as_json: bool) -> int:
    """`crosslens diff`: two runs figure by figure; 1 where something differs beyond the intervals.

    Raises:
        InputError: a folder that holds no whole run.
    """
    found, facts = differences(first, second), [read_facts(path) for path in (first, second)]
    beyond = [figure for figure in found if figure.verdict in ("beyond", "changed")]
    if as_json:
        print(to_json([asdict(figure) | {"verdict": figure.verdict} for figure in found], indent=1))
        return int(bool(beyond))
    console = Console() if sys.stdout.isatty() else Console(width=140)
    table = RichTable("page", *MEANINGS, box=SIMPLE_HEAD)
    for page, counts in counted(found).items():
        table.add_row(page, *(str(count or "") for count in counts.values()))
    console.print(table)
    for verdict, meaning in MEANINGS.items():
        console.print(f"  {verdict}: {meaning}", style="dim", highlight=False)
    for figure in beyond:
        where = " · ".join(filter(None, (figure.page, figure.table, figure.row, figure.column)))
        console.print(f"\n{where}\n  {figure.first}\n  {figure.second}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{len(beyond)} of {len(found)} figures differ beyond the intervals or say something else")
    if otherwise := {name: both for name, both in apart(*facts).items() if name != "cells"}:
        console.print("The runs were made differently:")
        for name, (one, other) in otherwise.items():
            console.print(f"  {name}: {one} | {other}", markup=False, highlight=False, soft_wrap=True)
    return int(bool(beyond))


def _print(rendered: Sequence[AnyTable], files: Sequence[Path]) -> None:
    """The tables, then where they are."""
    console = Console() if sys.stdout.isatty() else Console(width=140)  # a log has no width: let no column be cut
    show(console, rendered)
    console.print("\nThe tables are in")
    for path in files:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
