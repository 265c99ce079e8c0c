"""nnsight 0.8.1: a name that is bound before the trace keeps its old value when `.save()` is forgotten.

Claim: a new name that is not saved is an error when it is read; one that existed before silently keeps what it held.
Documentation followed: README, Quick Start: values are kept by `.save()`.
Right: `.save()`. Through crosslens what was not captured is a SiteError.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Assign to an existing name without saving; `holds` where it has not changed."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    wrapped = NNsight(model)
    hidden = torch.zeros(1)
    with torch.no_grad(), wrapped.trace(ids):
        hidden = wrapped.model.layers[1].output
    return {
        "claim": "without save an existing name keeps its old value, without an error",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "https://github.com/ndif-team/nnsight/issues/487",
        "observed": {"shape": list(hidden.shape)},
        "expected": {"shape": [2, 8, 32]},
        "holds": list(hidden.shape) == [1],
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
