"""Starts the processes, one at a time, and keeps what they find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crosslens.benchmarks.environment import environment

from .catalogue import CLAIMS, LIBRARIES, groups
from .claim import Kept, Scale

SECONDS = 900.0
"""That one process may take."""


def study(
    rows: list[str],
    processes: int,
    scale: Scale,
    *,
    apart: bool = False,
    kept: dict[str, Any] | None = None,
    limit: float = SECONDS,
) -> Iterator[dict[str, Any]]:
    """Measure rows in so many processes each; yields everything that is known after each process.

    Groups take turns, so that what drifts over minutes falls on all of them alike.

    Args:
        rows: ids that `checked` gave.
        processes: for rows that time; those that compute have one.
        scale: of a process; each has the seed after the one before.
        apart: a process for each row, not for each group of rows.
        kept: of an earlier study, whose other rows stay.
        limit: seconds that one process may take.
    """
    everything: dict[str, Any] = {
        "environment": environment(LIBRARIES),
        "settings": {"processes": processes, "apart": apart, **asdict(scale)},
        "rows": {**(kept or {}).get("rows", {}), **{each: [] for each in rows}},
    }
    for turn in range(processes):
        for group, ids in groups(rows, apart).items():
            wanted = [each for each in ids if turn == 0 or not CLAIMS[each].once]
            if not wanted:
                continue
            found = run(group, wanted, replace(scale, seed=scale.seed + turn), limit)
            for each in wanted:
                everything["rows"][each].append(found[each])
            yield everything
    yield everything


def run(group: str, rows: list[str], scale: Scale, limit: float = SECONDS) -> dict[str, Kept]:
    """What a fresh process finds of each row; a process that dies or takes too long gives `error` for what is left."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.json")
        job.write_text(json.dumps({"rows": rows, "scale": asdict(scale)}), encoding="utf-8")
        command = [sys.executable, "-P", "-W", "ignore", "-m", f"{__package__}.worker", str(job)]
        settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLCONFIGDIR": folder}
        try:
            done = subprocess.run(
                command, env=os.environ | settings, capture_output=True, text=True, timeout=limit, check=False
            )
            ended = f"the process of {group} ended with {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}"
        except subprocess.TimeoutExpired:
            ended = f"the process of {group} took longer than {limit:.0f} s"
        found: dict[str, Kept] = {}
        if job.with_suffix(".found").exists():
            found = json.loads(job.with_suffix(".found").read_text(encoding="utf-8"))
    return {each: found.get(each, {"error": ended}) for each in rows}
