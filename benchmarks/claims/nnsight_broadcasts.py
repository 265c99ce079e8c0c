"""nnsight 0.8.1: an output may be assigned a value of another shape, which is broadcast.

Claim: what is assigned is not held to the shape of what it replaces: (d_model,) for (batch, pos, d_model) is added to
every position.
Documentation followed: README, Quick Start: assignment to `.output`.
Right: a value of the shape of the output. Through crosslens another shape is an error before the model runs.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Assign one vector; `holds` where it is taken."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    with torch.no_grad():
        plain = model(ids).logits
    wrapped = NNsight(model)
    try:
        with torch.no_grad(), wrapped.trace(ids):
            wrapped.model.layers[1].mlp.output = torch.zeros(32)
            got = wrapped.output.logits.save()
        error = "no error"
    except RuntimeError as refused:
        got, error = plain, str(refused)
    effect = float((got - plain).abs().max())
    return {
        "claim": "a value of another shape is broadcast over batch and positions",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"error": error, "effect on the logits": effect},
        "expected": {"error": "one that names both shapes", "effect on the logits": 0.0},
        "holds": error == "no error" and effect > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
