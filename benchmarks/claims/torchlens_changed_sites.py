"""torchlens 2.36.1: `most_changed` of a clean and an edited trace leaves out the sites behind the edit.

Claim: an intervention inserts an operation and renumbers those behind it; a Bundle compares labels that both traces
have, and says nothing of the others.
Documentation followed: documentation of `Bundle.most_changed`.
Right: compare by module path. Through crosslens sites have the same name in every run.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
import torchlens as tl
from torch import nn


def main() -> dict[str, Any]:
    """Zero the first of three layers; `holds` where a layer behind it is missing from the ranking."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.randn(2, 4)
    clean = tl.trace(model, inputs)
    edited = tl.trace(model, inputs, intervene=tl.when(tl.module("0"), lambda act, *, hook: act * 0))
    ranked = [label for label, _ in tl.Bundle({"clean": clean, "edited": edited}).most_changed()]
    layers = [label for label in ranked if label.startswith("linear")]
    return {
        "claim": "a comparison of a clean and an edited trace leaves out what lies behind the edit",
        "library": "torchlens",
        "version": version("torchlens"),
        "upstream": "not found upstream",
        "observed": {"linear layers that are ranked": len(layers)},
        "expected": {"linear layers that are ranked": 3},
        "holds": len(layers) < 3,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
