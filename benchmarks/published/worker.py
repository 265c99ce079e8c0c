"""Measures the rows of one group, in this process: `python -m crosslens.benchmarks.published.worker JOB.json`.

Rows come in an order drawn for the process, for none to gain by what the one before left warm. What is found is written
anew after each, so that a crash costs only the rows that were left.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from crosslens.benchmarks.environment import threads
from crosslens.tasks.parts import replace_file

from .catalogue import CLAIMS
from .claim import Kept, Scale


def measured(claim_id: str, scale: Scale) -> Kept:
    """One row; an exception is an outcome."""
    measure = CLAIMS[claim_id].measure
    if measure is None:
        return {"error": "cannot be measured here"}
    try:
        return measure(scale)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main(job: Path) -> None:
    """Measure what `job` names; the result is `JOB.found` beside it."""
    asked: dict[str, Any] = json.loads(job.read_text(encoding="utf-8"))
    torch.set_num_threads(threads())
    scale, found = Scale(**asked["scale"]), dict[str, Kept]()
    for each in random.Random(scale.seed).sample(asked["rows"], len(asked["rows"])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[each] = measured(each, scale)
        replace_file(job.with_suffix(".found"), json.dumps(found).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
