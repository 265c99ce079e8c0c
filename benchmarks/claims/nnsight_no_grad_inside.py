"""nnsight 0.8.1: `with model.trace(...), torch.no_grad():` computes with gradients.

Claim: the forward runs when the outer context ends, so a `no_grad` that is entered after the trace has no effect on
it; entered before, it has.
Documentation followed: README, Quick Start; PyTorch: `no_grad` holds for what is computed inside.
Right: `with torch.no_grad(), model.trace(...):`. Through crosslens `run` computes without gradients.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Enter both in either order; `holds` where one of them has no effect."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    wrapped = NNsight(model)
    with wrapped.trace(ids), torch.no_grad():
        after = wrapped.output.logits.save()
    with torch.no_grad(), wrapped.trace(ids):
        before = wrapped.output.logits.save()
    return {
        "claim": "no_grad entered after the trace has no effect",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"requires_grad": after.requires_grad, "in the other order": before.requires_grad},
        "expected": {"requires_grad": False, "in the other order": False},
        "holds": after.requires_grad and not before.requires_grad,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
