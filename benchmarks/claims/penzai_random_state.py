"""penzai 0.2.5: importing penzai changes NumPy's global random state.

Claim: penzai imports JAX, whose import draws from `numpy.random`; numbers that a seeded program draws next are
others.
Documentation followed: NumPy: the same seed gives the same numbers; penzai's documentation names no effect of
importing it.
Right: import it before seeding.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any


def main() -> dict[str, Any]:
    """Seed, import, draw, in a process of its own; `holds` where the number is another one than without the import."""
    numbers = [_drawn("pass"), _drawn("import penzai.pz")]
    return {
        "claim": "importing penzai changes NumPy's global random state",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"number drawn after seeding and importing": numbers[1]},
        "expected": {"number drawn after seeding and importing": numbers[0]},
        "holds": numbers[0] != numbers[1],
    }


def _drawn(statement: str) -> int:
    code = f"import numpy; numpy.random.seed(0); {statement}; print(numpy.random.randint(10**9))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
