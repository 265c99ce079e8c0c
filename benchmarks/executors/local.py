"""Cells in processes of this machine, so many at a time, each on cores that no other has."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..launch import run_worker
from ..plan import Cell, Plan
from ..progress import Show
from ..store import RunFolder, cannot_write
from . import Work, job_of

_AWAKE = 0.25  # seconds between two looks at what has finished


class Queue:
    """The local executor; see `Executor`."""

    def __init__(self, plan: Plan, folder: RunFolder, show: Show) -> None:
        self._plan, self._folder, self._show = plan, folder, show
        self._stop = threading.Event()
        affinity = getattr(os, "sched_getaffinity", None)  # Linux alone
        cores = sorted(affinity(0)) if affinity is not None and plan.jobs > 1 else []
        self._slots: SimpleQueue[list[int]] = SimpleQueue()
        for job in range(plan.jobs):
            self._slots.put(cores[job * plan.threads : (job + 1) * plan.threads])

    def run(self, cells: Work) -> dict[str, str]:
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
        name, slot = str(cell), self._slots.get()
        scratch = self._folder.scratch(cell.id)
        self._show.start(name)
        held = None if reference is None else self._folder.result(reference).resolve()
        job = job_of(cell, self._plan, cores=slot, reference=held)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            found = run_worker(
                job,
                scratch.resolve(),
                timeout=self._plan.timeout,
                follow=partial(self._show.follow, name),
                stop=self._stop,
                warm=self._plan.warm,
            )
        except BaseException as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, InterruptedError):
                raise cannot_write(self._folder.path, error) from error
            raise
        finally:
            self._slots.put(slot)
        return asdict(cell) | {"started": started} | found.cell, found.samples, scratch
