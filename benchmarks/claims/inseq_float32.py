"""inseq 0.7.1: the scores of a float64 model are float32.

Claim: attributions are cast to float32, whatever the model computes in.
Documentation followed: "Quickstart".
Right: captum directly. Through crosslens scores have the dtype of the model.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Attribute with a float64 model; `holds` where the scores are float32."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    found = wrapped.attribute("a cat", "a cat!", attributed_fn="logit", show_progress=False)
    dtype = found.sequence_attributions[0].target_attributions.dtype
    return {
        "claim": "scores of a float64 model are float32",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"dtype": str(dtype)},
        "expected": {"dtype": str(model.dtype)},
        "holds": dtype == torch.float32 and model.dtype == torch.float64,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
