"""nnsight 0.8.1: editing the attention weights that a module returns changes nothing.

Claim: the weights in `self_attn.output[1]` are returned for the user and read by nobody in the model; writing into
them has no effect and is no error.
Documentation followed: README: some modules, like attention, return a tuple, which is indexed and edited.
Right: edit inside the function that computes attention, by `.source`. Through crosslens `attn.pattern` is edited
there.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Zero the weights; `holds` where the logits are the plain ones."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    with torch.no_grad():
        plain = model(ids).logits
    wrapped = NNsight(model)
    with torch.no_grad(), wrapped.trace(ids):
        wrapped.model.layers[1].self_attn.output[1][:] = 0
        got = wrapped.output.logits.save()
    with torch.no_grad(), wrapped.trace(ids):
        wrapped.model.layers[1].self_attn.o_proj.input[:] = 0
        want = wrapped.output.logits.save()
    effect, should = (float((logits - plain).abs().max()) for logits in (got, want))
    return {
        "claim": "zeroing the attention weights that a module returns changes nothing",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"effect on the logits": effect},
        "expected": {"effect on the logits": should},
        "holds": effect == 0 and should > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
