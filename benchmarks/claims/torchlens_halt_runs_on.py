"""torchlens 2.36.1: `record(halt=tl.module(x))` runs the model to its end.

Claim: the model is to stop once the module's output is there; `trace` does, `record` with the same selector goes on,
with no warning.
Documentation followed: README: `halt=` of `tl.trace` and `tl.record`, with a selector.
Right: `halt=tl.in_module(NEXT)`. Through crosslens `until=` stops.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
import torchlens as tl
from torch import nn


def main() -> dict[str, Any]:
    """Stop at the first of three layers; `holds` where the last one runs."""
    torch.manual_seed(0)
    model, calls = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), []
    model[2].register_forward_hook(lambda module, args, output: calls.append(1))
    tl.record(model, torch.randn(2, 4), save=tl.module("0"), halt=tl.module("0"))
    recorded = len(calls)
    calls.clear()
    tl.record(model, torch.randn(2, 4), save=tl.module("0"), halt=tl.in_module("1"))
    return {
        "claim": "record does not stop at the module that halt names",
        "library": "torchlens",
        "version": version("torchlens"),
        "upstream": "not found upstream",
        "observed": {"calls of the last layer": recorded, "halted inside the next one": len(calls)},
        "expected": {"calls of the last layer": 0, "halted inside the next one": 0},
        "holds": recorded > 0 and not calls,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
