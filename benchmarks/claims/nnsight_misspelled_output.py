"""nnsight 0.8.1: assigning to `.outputs` for `.output` changes nothing, without an error.

Claim: reading an attribute that a module lacks is an error; assigning one sets it on the wrapper, and the forward
goes on as it was.
Documentation followed: README, Quick Start: `model.transformer.h[0].output[:] = 0`, and assignment to `.output`.
Right: spell `.output`. Through crosslens a site that matches nothing is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Assign zeros to the misspelled attribute; `holds` where the logits are the plain ones."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    with torch.no_grad():
        plain = model(ids).logits
    wrapped = NNsight(model)
    with torch.no_grad(), wrapped.trace(ids):
        wrapped.model.layers[1].outputs = torch.zeros(2, 8, 32)
        got = wrapped.output.logits.save()
    with torch.no_grad(), wrapped.trace(ids):
        wrapped.model.layers[1].output = torch.zeros(2, 8, 32)
        want = wrapped.output.logits.save()
    effect, should = (float((logits - plain).abs().max()) for logits in (got, want))
    return {
        "claim": "assigning to a misspelled output changes nothing, without an error",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"effect on the logits": effect},
        "expected": {"effect on the logits": should},
        "holds": effect == 0 and should > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
