"""inseq 0.7.1: in a batch of prompts of unequal length the shorter one gets other scores than alone.

Claim: the padded batch is run without positions that count real tokens; on a model with learned positions the scores
of the padded prompt are of other positions.
Documentation followed: "Quickstart", a list of texts.
Right: one prompt at a time. Through crosslens each row gets what it gets alone.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Attribute a prompt with a longer one and alone; `holds` where its scores differ."""
    model, tokenizer = tiny_model("gpt2")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    options = {"attributed_fn": "logit", "generation_args": {"max_new_tokens": 1}, "show_progress": False}
    alone = wrapped.attribute("a cat", **options).sequence_attributions[0].target_attributions[:4]
    batch = wrapped.attribute(["a cat", "the dog sat on a mat"], **options)
    padded = batch.sequence_attributions[0].target_attributions[:4]
    off, scale = float((padded - alone).abs().max()), float(alone.abs().max())
    return {
        "claim": "a padded prompt gets other scores than alone",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"largest difference, relative": off / scale},
        "expected": {"largest difference, relative": 0.0},
        "holds": off > 0.01 * scale,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
