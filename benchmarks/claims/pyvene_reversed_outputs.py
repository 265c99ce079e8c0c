"""pyvene 0.1.8: without sites the outputs come in the other order.

Claim: a call returns the base's output and the intervened one; with an empty configuration, the output is where the
base's is and None where the intervened one is.
Documentation followed: tutorial pyvene_101: a call returns original and intervened outputs.
Right: test for it. Through crosslens a run without edits is the plain run.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Call with no site; `holds` where the second output is None."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("gpt2")
    with torch.no_grad():
        first, second = pv.IntervenableModel([], model=model)(base=inputs)
    return {
        "claim": "without sites the intervened output is None",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"original": type(first).__name__, "intervened": type(second).__name__},
        "expected": {"original": "NoneType", "intervened": "CausalLMOutputWithCrossAttentions"},
        "holds": first is not None and second is None,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
