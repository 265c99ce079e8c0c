"""tdhook 0.3.0: a value of another shape is broadcast into the place that it replaces.

Claim: `session.replace` does not hold the value to the shape of the target: one row, or one number, fills all.
Documentation followed: documentation of `HookSession.replace`.
Right: a value of the target's shape. Through crosslens another shape is an error before the model runs.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import nn


def main() -> dict[str, Any]:
    """Replace (2, 5) by (5,); `holds` where it is taken."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), torch.randn(2, 4)
    target = Target("0", "activation", -1, tuple(range(5)))
    try:
        with HookSession(model) as session:
            session.replace(target, torch.arange(5.0))
            captured = session.capture(target)
            model(inputs)
        error, rows = "no error", len(captured.values[0])
        filled = bool(torch.equal(captured.values[0], torch.arange(5.0).expand(2, 5)))
    except (RuntimeError, ValueError) as refused:
        error, rows, filled = str(refused), 0, False
    return {
        "claim": "a value of another shape is broadcast over the batch",
        "library": "tdhook",
        "version": version("tdhook"),
        "upstream": "not found upstream",
        "observed": {"error": error, "rows that got the one row": rows if filled else 0},
        "expected": {"error": "one that names both shapes", "rows that got the one row": 0},
        "holds": error == "no error" and filled,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
