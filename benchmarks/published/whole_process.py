"""TDHook's way to time a task: a whole process that runs it, less a whole process that does not, to 10 ms.

python -m crosslens.benchmarks.published.whole_process tdhook --run
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from .claim import Kept, Scale

_SEEDS = 3  # that their mean is of
_SETS = 1  # of each library
_LIBRARIES = ("tdhook", "nnsight")
_SECONDS = 120.0


def by_difference(scale: Scale) -> Kept:
    """The mean of what remains of three differences to the mean time inside; one value for each library and each three.

    Raises:
        ValueError: no difference remains, or a process fails.
    """
    values, differences, insides, spawns = [], [], [], []
    for library in _LIBRARIES:
        for _ in range(_SETS):
            three, inside = [], []
            for _seed in range(_SEEDS):
                spawn, _ = _timed(library, run=False)
                whole, within = _timed(library, run=True)
                three.append(round(whole, 2) - round(spawn, 2))  # GNU time's %E has hundredths
                inside.append(within)
                spawns.append(spawn)
            remaining = [each for each in three if each >= 0]
            if remaining:
                values.append(float(np.mean(remaining) / np.mean(inside)))
            differences += three
            insides += inside
    if not values:
        raise ValueError("every difference was negative: their rule leaves no value at all")
    kept = [each for each in differences if each >= 0]
    return {
        "values": values,
        "facts": {
            "runs": len(differences), "negative": sum(each < 0 for each in differences),
            "zero": sum(abs(each) < 0.005 for each in differences), "inside_ms": 1000 * float(np.mean(insides)),
            "kept_ms": 1000 * float(np.mean(kept)), "all_ms": 1000 * float(np.mean(differences)),
            "spread_ms": 1000 * _spread(spawns, _SETS * _SEEDS),
            "differences_s": differences, "inside_s": insides, "spawn_s": spawns,
        },
    }  # fmt: skip


def _spread(spawns: list[float], each: int) -> float:
    """Standard deviation of spawning, within libraries."""
    parts = [spawns[at : at + each] for at in range(0, len(spawns), each)]
    return float(np.sqrt(np.mean([np.var(part, ddof=1) for part in parts])))


def _timed(library: str, *, run: bool) -> tuple[float, float]:
    """Seconds of a whole process, and of the task inside it (0 if it is not run)."""
    command = [
        sys.executable,
        "-P",
        "-W",
        "ignore",
        "-m",
        f"{__package__}.intervene",
        library,
        *(["--run"] if run else []),
    ]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    spent = time.perf_counter() - start
    if done.returncode:
        raise ValueError(f"{library}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return spent, float(done.stdout.split()[-1])
