"""nnsight 0.8.1: a saved value changes when the output is edited in place afterwards.

Claim: `.save()` keeps the tensor that passed and no copy; an assignment into it later in the block changes what was
saved before.
Documentation followed: README, Quick Start: `.output.save()` and `.output[:] = 0`.
Right: `.clone().save()`. Through crosslens every capture is a copy.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Save, then zero; `holds` where what was saved is zero."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    wrapped = NNsight(model)
    with torch.no_grad(), wrapped.trace(ids):
        before = wrapped.model.layers[1].output.save()
        wrapped.model.layers[1].output[:] = 0
    with torch.no_grad(), wrapped.trace(ids):
        want = wrapped.model.layers[1].output.save()
    return {
        "claim": "what was saved before an in-place edit holds the edit",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"largest value": float(before.abs().max())},
        "expected": {"largest value": float(want.abs().max())},
        "holds": float(before.abs().max()) == 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
