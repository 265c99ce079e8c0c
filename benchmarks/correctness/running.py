"""One process for each backend; one that dies or hangs loses the cell that it was at, and another goes on."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from .asking import Distance
from .design import Cell
from .judge import Verdict
from .kept import Row

SECONDS = 300.0
"""That a process may be silent."""

DEATHS = 5
"""Of a backend's processes; the cells after that are not run."""

Job = tuple[Cell, tuple[str, ...]]
COMMAND = (sys.executable, "-P", "-m", "crosslens.benchmarks.correctness.worker")


def run(
    backend: str,
    jobs: Sequence[Job],
    about: dict[str, Any],
    *,
    command: Sequence[str] = COMMAND,
    seconds: float = SECONDS,
) -> Iterator[list[Row]]:
    """The verdicts on each cell, in order; none where the library is missing.

    Args:
        backend: a registered name.
        jobs: cells, each with the dtypes to run it in.
        about: told the backend's `library` and `version`, and why it is `missing`, or null.
        command: what takes a job on stdin and answers as `worker` does.
        seconds: that it may be silent.
    """
    about |= {"library": None, "version": None, "missing": None}
    left, deaths = list(jobs), 0
    while left and deaths < DEATHS:
        end = ""
        for line in _lines(
            command, {"backend": backend, "cells": [(cell.id, dtypes) for cell, dtypes in left]}, seconds
        ):
            if isinstance(line, str):
                end = line
                break
            if "library" in line:
                about |= line
                if line["missing"]:
                    return
                continue
            cell, _ = left.pop(0)
            yield [Row(backend, cell, dtype, _verdict(kept)) for dtype, kept in line["verdicts"].items()]
        if left:
            deaths += 1
            cell, dtypes = left.pop(0)
            yield [Row(backend, cell, dtypes[0], Verdict("error", why=end or "the process ended before its answer"))]
    for cell, dtypes in left:
        yield [Row(backend, cell, dtypes[0], Verdict("error", why=f"not run: {DEATHS} processes had ended before"))]


def _lines(command: Sequence[str], job: dict[str, Any], seconds: float) -> Iterator[dict[str, Any] | str]:
    """Each answer; then, if the process ended otherwise than well, how, as a text."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=settings
        )
        answers: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, job, answers), daemon=True)
        reader.start()
        try:
            while True:
                try:
                    line = answers.get(timeout=seconds)
                except queue.Empty:
                    yield f"the process was silent for {seconds:g} s and was ended"
                    return
                if line is None:
                    break
                yield json.loads(line)
            if code := process.wait():
                said.seek(0)
                last = said.read().strip().rpartition("\n")[2]
                yield f"the process ended with {code}: {last[:300]}"
        finally:
            process.kill()
            process.wait()
            reader.join()


def _read(process: subprocess.Popen[str], job: dict[str, Any], answers: queue.Queue[str | None]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
    except OSError:
        pass  # it ended before it had read all
    for line in process.stdout:
        answers.put(line)
    answers.put(None)


def _verdict(kept: dict[str, Any]) -> Verdict:
    far = kept.pop("distance")
    return Verdict(**kept, distance=None if far is None else Distance(**far))
