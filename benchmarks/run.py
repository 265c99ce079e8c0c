"""`crosslens run`: every cell in a process of its own, in the plan's order, each kept as it finishes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from crosslens.adapters import load_backend
from crosslens.tasks import known_models

from .environment import environment, library_version
from .executors import Executor
from .executors.local import Queue
from .plan import Cell, Plan, find_task, why_not
from .progress import Show
from .store import RunFolder

FINDINGS = frozenset({"wrong", "vacuous", "not-installed", "failed", "crashed", "timeout", "out-of-memory"})
"""Outcomes of a cell that make `crosslens run` exit with status 1."""
_NO_REFERENCE = {
    "status": "failed",
    "reason": "not run: its reference did not finish, so there is nothing to compare it with",
}


def facts(plan: Plan, executor: str = "local") -> dict[str, Any]:
    """What run.json says of a run that starts now; `executor` is one of `executors.EXECUTORS`."""
    models = {model for _, model in plan.pairs()}
    libraries = [library for name in plan.backends if (library := _library(name)) is not None]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": plan.facts(),
        "executor": executor,
        "environment": environment(libraries),
        "random_models": [entry.name for entry in known_models() if entry.kind == "random" and entry.name in models],
        "cells": [cell.id for cell in plan.cells()],
    }


def execute(plan: Plan, folder: RunFolder, show: Show, executor: Executor | None = None) -> bool:
    """Run every cell of the plan that the folder does not hold yet.

    Args:
        executor: where; None for this machine, `plan.jobs` at a time.

    Returns:
        Whether no cell has a finding: each is right, or says that its backend cannot do the task.

    Raises:
        KeyboardInterrupt: the cells under way are given up; those before them are kept.
        InputError: the folder can no longer be written.
    """
    cells = plan.cells()
    status = dict(folder.finished)
    queue = executor or Queue(plan, folder, show)
    for cell in cells:  # first, for the time left to be of those that run
        if cell.id not in status and (found := _cannot(cell)):
            status[cell.id] = _keep(cell, found, folder, show)
    for kind in ("reference", "backend"):
        waiting = []
        for cell in (c for c in cells if c.kind == kind and c.id not in status):
            reference = None
            if kind == "backend":
                reference = next(c.id for c in cells if c.kind == "reference" and (c.task, c.model) == cell.of)
                if status[reference] != "done":
                    status[cell.id] = _keep(cell, _NO_REFERENCE, folder, show)
                    continue
            waiting.append((cell, reference))
        status |= queue.run(waiting)
    return not FINDINGS & set(status.values())


def _cannot(cell: Cell) -> dict[str, Any] | None:
    """What is known of a cell whose backend cannot do it, which needs no process; else None."""
    if cell.implementation is None:
        return None
    try:
        backend = load_backend(cell.implementation)
    except Exception:
        backend = None  # the cell's own process says what is broken
    if backend is not None and (reason := why_not(find_task(cell.task), backend)):
        library = backend.library or "torch"
        return {"status": "unsupported", "reason": reason, "library": library, "version": library_version(library)}
    return None


def _keep(cell: Cell, found: dict[str, Any], folder: RunFolder, show: Show) -> str:
    """Keep a cell that was not run; returns its status."""
    show.start(str(cell))
    kept = asdict(cell) | {"figures": {}, "seconds": 0.0} | found
    folder.add(kept, [], folder.scratch(cell.id))
    show.finish(str(cell), kept["status"], kept["reason"], 0.0)
    status: str = kept["status"]
    return status


def _library(name: str) -> str | None:
    """The distribution behind a backend, where it can be imported."""
    try:
        return load_backend(name).library
    except Exception:
        return None  # a broken library: its cells say how
