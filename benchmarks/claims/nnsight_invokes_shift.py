"""nnsight 0.8.1: in a trace with two prompts, positions of the shorter one count from its padding.

Claim: prompts of several `invoke`s are padded on the left to one length; `[:, 0]` in the shorter one's block is a
padding token.
Documentation followed: README: several `tracer.invoke(...)` in one trace, each with its own prompt.
Right: count from the end, or one trace for each prompt. Through crosslens positions count real tokens.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import TransformersModel

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Read position 0 with a longer prompt beside it and alone; `holds` where they differ."""
    model, tokenizer = tiny_model("llama")
    wrapped = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    with torch.no_grad(), wrapped.trace() as tracer:
        with tracer.invoke("the cat"):
            first = wrapped.model.layers[1].output[:, 0].save()
            last = wrapped.model.layers[1].output[:, -1].save()
        with tracer.invoke("the cat sat on a mat"):
            pass
    with torch.no_grad(), wrapped.trace("the cat"):
        whole = wrapped.model.layers[1].output.save()
    off = [float((got - want).abs().max()) for got, want in ((first, whole[:, 0]), (last, whole[:, -1]))]
    return {
        "claim": "with a longer prompt in the same trace, position 0 is a padding token",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "not found upstream",
        "observed": {"position 0 off by": off[0], "position -1 within rounding": off[1] < 1e-4},
        "expected": {"position 0 off by": 0.0, "position -1 within rounding": True},
        "holds": off[0] > 0.01 and off[1] < 1e-4,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
