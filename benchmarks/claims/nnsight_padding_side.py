"""nnsight 0.8.1: wrapping sets the caller's tokenizer to pad on the left.

Claim: `TransformersModel` sets `padding_side` of the tokenizer that it is given, for good; batches that the caller
pads afterwards are padded on the other side.
Documentation followed: README: a model and a tokenizer that are in memory are passed in.
Right: set `padding_side` back. Through crosslens the tokenizer is as it was.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from nnsight import TransformersModel

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Wrap and look; `holds` where the side has changed."""
    model, tokenizer = tiny_model("llama")
    before = tokenizer.padding_side
    TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    return {
        "claim": "wrapping sets the caller's tokenizer to pad on the left",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"padding side": tokenizer.padding_side},
        "expected": {"padding side": before},
        "holds": (before, tokenizer.padding_side) == ("right", "left"),
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
