"""Times one backend on every operation, in a process of its own: `python -m crosslens.benchmarks.overhead.worker JOB`.

A job: `backend`, `repeat`, `device`, `model`, `shapes` (name, batch, tokens, operations, samples), `seconds` and
`threads`. Blocks of all cells come in turn, in an order drawn anew, until every cell has its samples or the time is
over.
"""

from __future__ import annotations

import importlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from crosslens.adapters import CrosslensError, load_backend
from crosslens.benchmarks.environment import library_version
from crosslens.benchmarks.fresh import answer
from crosslens.benchmarks.idioms.catalogue import LIBRARIES
from crosslens.benchmarks.timing import no_garbage_collection, seconds
from crosslens.tasks import load_model

from .operations import OPERATIONS, forward, prepare
from .ways import Cell, cell_of

FEWEST = 2
"""Blocks of each cell, whatever they take."""
_ALONE = 5  # forwards before the backend is opened


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Everything about one backend that one process finds."""
    hold_to(job["threads"])
    answer: dict[str, Any] = {"cells": []}
    if job["backend"] in LIBRARIES:
        importlib.import_module(LIBRARIES[job["backend"]][0])  # first: crosslens takes back what nnsight does to Tensor
    kind = load_backend(job["backend"])
    answer["version"] = library_version(kind.library or "torch")
    if not any(all(kind.supports()[need] for need in each.needs) for each in OPERATIONS.values()):
        return {**answer, "reason": "it has none of these operations"}
    model, tokenizer = load_model(job["model"])
    model.to(job["device"])
    with ExitStack() as stack:
        tokenizer = _as_from_a_checkpoint(tokenizer, stack.enter_context(tempfile.TemporaryDirectory()))
        works = {each["name"]: prepare(model, tokenizer, each["batch"], each["tokens"]) for each in job["shapes"]}
        alone = forward(next(iter(works.values())))
        seconds(alone, 2)
        answer["alone_s"] = [round(seconds(alone, 1), 7) for _ in range(_ALONE)]
        try:
            lenses = {"through": kind(model, tokenizer)}
            if job["backend"] == "hooks":
                lenses["again"] = kind(model, tokenizer)  # the same under another name: the control
        except CrosslensError as error:
            return {**answer, "reason": str(error)}
        for lens in lenses.values():
            stack.callback(lens.close)
        cells = []
        for each in job["shapes"]:
            for operation in each["operations"]:
                name, backend = each["name"], job["backend"]
                cells.append(cell_of(name, operation, works[name], each["samples"], lenses, backend, stack))
                cells[-1].judge()
        drawn = random.Random(f"{job['backend']} {job['repeat']}")
        with no_garbage_collection():
            answer["blocks"] = run_blocks(cells, drawn, job["seconds"])
        for cell in cells:
            cell.finish()
            answer["cells"].append(cell.kept())
    return answer


def run_blocks(
    cells: list[Cell], drawn: random.Random, budget: float, clock: Callable[[], float] = time.monotonic
) -> int:
    """Blocks of all cells in turn; returns how many there were of each."""
    start, order, done = clock(), list(cells), 0
    while done < max(cell.samples for cell in cells) and (done < FEWEST or clock() - start < budget):
        drawn.shuffle(order)
        for cell in order:
            cell.sample(drawn)
        done += 1
    return done


def hold_to(threads: int) -> None:
    """Compute with so many threads, on as many cores: not every library asks PyTorch how many to use."""
    torch.set_num_threads(threads)
    hold: Callable[..., None] | None = getattr(os, "sched_setaffinity", None)  # Linux
    if hold is not None:
        hold(0, sorted(os.sched_getaffinity(0))[-threads:])


def _as_from_a_checkpoint(tokenizer: Any, folder: str) -> Any:
    """Some libraries read where a tokenizer was loaded from; those of the tiny models were not."""
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    answer(measure)
