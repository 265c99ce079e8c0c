"""`crosslens run`: every cell in a process of its own, in the plan's order, each kept as it finishes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from crosslens.adapters import load_backend
from crosslens.tasks import known_models

from .environment import environment
from .launch import run_worker
from .plan import Cell, Plan
from .progress import Show
from .store import RunFolder

FINDINGS = frozenset({"wrong", "vacuous", "failed", "crashed", "timeout", "out-of-memory"})
"""Outcomes of a cell that make `crosslens run` exit with status 1."""


def facts(plan: Plan) -> dict[str, Any]:
    """What run.json says of a run that starts now."""
    models = {model for _, model in plan.pairs()}
    libraries = [library for name in plan.backends if (library := _library(name)) is not None]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": plan.facts(),
        "environment": environment(libraries),
        "random_models": [entry.name for entry in known_models() if entry.kind == "random" and entry.name in models],
        "cells": [cell.id for cell in plan.cells()],
    }


def execute(plan: Plan, folder: RunFolder, show: Show) -> bool:
    """Run every cell of the plan.

    Returns:
        Whether no cell has a finding: each is right, or says that its backend cannot do the task.

    Raises:
        KeyboardInterrupt: the cell under way is given up; those before it are kept.
        InputError: the folder can no longer be written.
    """
    references: dict[tuple[str, str], str | None] = {}
    good = True
    for cell in plan.cells():
        show.start(str(cell))
        reference = references.get((cell.task, cell.model))
        if cell.kind == "backend" and reference is None:
            kept = _without_reference(cell, folder)
        else:
            kept = _run(cell, plan, folder, reference, show.follow)
        if cell.kind == "reference":
            references[cell.task, cell.model] = cell.id if kept["status"] == "done" else None
        good &= kept["status"] not in FINDINGS
        show.finish(str(cell), kept["status"], kept["reason"], kept["seconds"])
    return good


def _run(
    cell: Cell, plan: Plan, folder: RunFolder, reference: str | None, follow: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Run one cell and keep it."""
    scratch = folder.scratch(cell.id)
    job = asdict(cell) | {
        "size": plan.size,
        "dtype": plan.dtype,
        "attn_implementation": plan.attn_implementation,
        "threads": plan.threads,
        "seed": plan.seed,
        "sampling": asdict(plan.sampling),
        "reference": reference and str(folder.result(reference).resolve()),
    }
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        found = run_worker(job, scratch.resolve(), timeout=plan.timeout, follow=follow)
    except BaseException:
        shutil.rmtree(scratch)
        raise
    kept = asdict(cell) | {"started": started} | found.cell
    folder.add(kept, found.samples, scratch)
    return kept


def _without_reference(cell: Cell, folder: RunFolder) -> dict[str, Any]:
    """A cell that cannot be judged is not run."""
    reason = "not run: its reference did not finish, so there is nothing to compare it with"
    kept = asdict(cell) | {"status": "failed", "reason": reason, "figures": {}, "seconds": 0.0}
    folder.add(kept, [], folder.scratch(cell.id))
    return kept


def _library(name: str) -> str | None:
    """The distribution behind a backend, where it can be imported."""
    try:
        return load_backend(name).library
    except Exception:
        return None  # a broken library: its cells say how
