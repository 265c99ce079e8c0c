"""torchlens 2.36.1: with dropout, a traced forward is not the plain one of the same seed.

Claim: a trace of a model in training mode draws another dropout mask than `model(x)` after the same `manual_seed`, and
two traces differ from each other.
Documentation followed: the README's `tl.trace`.
Right: `CaptureOptions(random_seed=n)` equals `manual_seed(n)`. Through crosslens the caller's random state is used.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
import torchlens as tl
from torch import nn


def main() -> dict[str, Any]:
    """Compare outputs under one seed; `holds` where the traced one differs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 1)).train(), torch.randn(4, 8)
    torch.manual_seed(1)
    plain = model(x).detach()
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        log = tl.trace(model, x)
        outputs.append(log[log.output_layers[0]].out.detach().clone())
    equal = [bool(torch.equal(plain, outputs[0])), bool(torch.equal(*outputs))]
    return {
        "claim": "a trace draws dropout of its own",
        "library": "torchlens",
        "version": version("torchlens"),
        "upstream": "not found upstream",
        "observed": {"equals the plain forward": equal[0], "two traces are equal": equal[1]},
        "expected": {"equals the plain forward": True, "two traces are equal": True},
        "holds": not equal[0],
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
