"""Measures one part, in a process of its own: `python -m crosslens.benchmarks.costs.worker JOB`; see `parts.Job`."""

from __future__ import annotations

from typing import Any

import torch

from crosslens.benchmarks.fresh import answer

from .parts import PARTS, Job


def measure(job: Job) -> dict[str, Any]:
    """What the part's own `measure` finds, on one thread."""
    torch.set_num_threads(1)
    return PARTS[job["part"]].measure(job)


if __name__ == "__main__":
    answer(measure)
