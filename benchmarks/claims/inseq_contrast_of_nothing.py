"""inseq 0.7.1: a contrastive score without its contrast is zero everywhere.

Claim: `contrast_logits_diff` without `contrast_targets` takes the target for its own contrast: all scores are 0,
without an error.
Documentation followed: tutorial "Contrastive Attributions".
Right: give `contrast_targets`. Through crosslens a target has its contrast in `Target`, or none.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Attribute without the contrast; `holds` where every score is 0."""
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    text = "the cat sat on"
    length, largest = len(tokenizer(text)["input_ids"]), {}
    for name in ("contrast_logits_diff", "logit"):
        found = wrapped.attribute(text, text + "!", attributed_fn=name, show_progress=False).sequence_attributions[0]
        largest[name] = float(found.target_attributions[:length].abs().max())
    return {
        "claim": "a contrastive score without a contrast is zero everywhere, without an error",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"largest score": largest["contrast_logits_diff"]},
        "expected": {"largest score": "an error that asks for contrast_targets"},
        "holds": largest["contrast_logits_diff"] == 0 and largest["logit"] > 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
