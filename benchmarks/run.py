"""`crosslens run`: every cell in a process of its own, in the plan's order, each kept as it finishes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from crosslens.adapters import load_backend
from crosslens.tasks import known_models

from .environment import environment, library_version
from .launch import run_worker
from .plan import Cell, Plan, find_task, why_not
from .progress import Show
from .store import RunFolder

FINDINGS = frozenset({"wrong", "vacuous", "failed", "crashed", "timeout", "out-of-memory"})
"""Outcomes of a cell that make `crosslens run` exit with status 1."""
_AWAKE = 0.25  # seconds between two looks at what has finished


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
    """Run every cell of the plan that the folder does not hold yet, `plan.jobs` at a time.

    Returns:
        Whether no cell has a finding: each is right, or says that its backend cannot do the task.

    Raises:
        KeyboardInterrupt: the cells under way are given up; those before them are kept.
        InputError: the folder can no longer be written.
    """
    cells = plan.cells()
    status = dict(folder.finished)
    queue = Queue(plan, folder, show)
    for kind in ("reference", "backend"):
        waiting = []
        for cell in (c for c in cells if c.kind == kind and c.id not in status):
            reference = None
            if kind == "backend":
                reference = next(c.id for c in cells if c.kind == "reference" and (c.task, c.model) == cell.of)
                if found := _not_run(cell, status[reference]):
                    status[cell.id] = _keep(cell, found, folder, show)
                    continue
            waiting.append((cell, reference))
        status |= queue.run(waiting)
    return not FINDINGS & set(status.values())


class Queue:
    """Cells in processes of their own, so many at a time, each on cores that no other has."""

    def __init__(self, plan: Plan, folder: RunFolder, show: Show) -> None:
        self._plan, self._folder, self._show = plan, folder, show
        self._stop = threading.Event()
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
        cores = sorted(affinity(0)) if affinity is not None and plan.jobs > 1 else []
        self._slots: SimpleQueue[list[int]] = SimpleQueue()
        for job in range(plan.jobs):
            self._slots.put(cores[job * plan.threads : (job + 1) * plan.threads])

    def run(self, cells: Sequence[tuple[Cell, str | None]]) -> dict[str, str]:
        """Run and keep each, in the order in which they end; cell -> status."""
        status = {}
        with ThreadPoolExecutor(self._plan.jobs) as pool:
            try:
                running = {pool.submit(self._one, cell, reference): cell for cell, reference in cells}
                while running:
                    # not for ever: a Ctrl-C that the system gives to another thread is seen when this one wakes
                    for done in wait(running, timeout=_AWAKE, return_when=FIRST_COMPLETED).done:
                        cell = running.pop(done)
                        kept, samples, scratch = done.result()
                        self._folder.add(kept, samples, scratch)
                        status[kept["id"]] = kept["status"]
                        self._show.finish(str(cell), kept["status"], kept["reason"], kept["seconds"])
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return status

    def _one(self, cell: Cell, reference: str | None) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
        plan, name = self._plan, str(cell)
        slot = self._slots.get()
        scratch = self._folder.scratch(cell.id)
        self._show.start(name)
        job = asdict(cell) | {
            "size": plan.size,
            "dtype": plan.dtype,
            "attn_implementation": plan.attn_implementation,
            "threads": plan.threads,
            "cores": slot,
            "seed": plan.seed,
            "sampling": asdict(plan.sampling),
            "reference": reference and str(self._folder.result(reference).resolve()),
        }
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            found = run_worker(
                job, scratch.resolve(), timeout=plan.timeout, follow=partial(self._show.follow, name), stop=self._stop
            )
        except BaseException:
            shutil.rmtree(scratch)
            raise
        finally:
            self._slots.put(slot)
        return asdict(cell) | {"started": started} | found.cell, found.samples, scratch


def _not_run(cell: Cell, reference: str) -> dict[str, Any] | None:
    """What is known of a cell that needs no process; None where it is to be run."""
    assert cell.implementation is not None
    try:
        backend = load_backend(cell.implementation)
    except Exception:
        backend = None  # the cell's own process says what is broken
    if backend is not None and (reason := why_not(find_task(cell.task), backend)):
        library = backend.library or "torch"
        return {"status": "unsupported", "reason": reason, "library": library, "version": library_version(library)}
    if reference != "done":
        return {
            "status": "failed",
            "reason": "not run: its reference did not finish, so there is nothing to compare it with",
        }
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
