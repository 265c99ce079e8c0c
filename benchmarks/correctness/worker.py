"""The cells of one backend, in a process of their own; on stdin `{"backend": ..., "cells": [[id, dtypes], ...]}`.

On stdout a line of JSON about the backend, then one for each cell. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from crosslens.adapters import BackendNotInstalledError, load_backend
from crosslens.benchmarks.environment import library_version

from .design import possible
from .measure import measured


def main() -> None:
    """Run them."""
    job = json.load(sys.stdin)
    dtypes = {name: tuple(each) for name, each in job["cells"]}
    cells = {cell.id: cell for cell in possible()}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # outside the questions, in which they count
    try:
        backend = load_backend(job["backend"])
    except BackendNotInstalledError as error:
        tell({"library": None, "version": None, "missing": str(error)})
        return
    library = backend.library or "torch"
    tell({"library": library, "version": library_version(library), "missing": None})
    for cell, verdicts in measured(backend, [cells[name] for name in dtypes], lambda cell: dtypes[cell.id]):
        tell({"cell": cell.id, "verdicts": {dtype: asdict(verdict) for dtype, verdict in verdicts.items()}})


if __name__ == "__main__":
    main()
