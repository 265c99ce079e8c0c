"""inseq 0.7.1: the step score `mc_dropout_prob_avg` leaves the model in training mode.

Claim: dropout is switched on for the score and not off again; later forwards of the same model are random where it
has dropout.
Documentation followed: documentation of step functions: `mc_dropout_prob_avg`.
Right: call `model.eval()` afterwards.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Ask for the score; `holds` where the model trains afterwards."""
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    before = model.training
    wrapped.attribute("a cat", "a cat!", step_scores=["mc_dropout_prob_avg"], show_progress=False)
    return {
        "claim": "a step score leaves the model in training mode",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"training": model.training},
        "expected": {"training": before},
        "holds": model.training and not before,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
