"""inseq 0.7.1: loading and attributing changes the caller's tokenizer, mode and gradients.

Claim: the tokenizer pads and truncates on the left afterwards, the model is in evaluation mode, and gradients that
parameters had are gone.
Documentation followed: "Quickstart", with a model and a tokenizer that are in memory.
Right: set them back. Through crosslens all are as they were.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Attribute once and look; `holds` where all three have changed."""
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    model.train()
    weight = model.get_output_embeddings().weight
    weight.grad = torch.ones_like(weight)

    def state() -> dict[str, Any]:
        sides = f"{tokenizer.padding_side}, {tokenizer.truncation_side}"
        return {"sides": sides, "training": model.training, "has a gradient": weight.grad is not None}

    before = state()
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    wrapped.attribute("a cat", "a cat!", show_progress=False)
    after = state()
    return {
        "claim": "one attribution changes the tokenizer, the mode and the gradients of the caller",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": after,
        "expected": before,
        "holds": all(before[name] != after[name] for name in before),
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
