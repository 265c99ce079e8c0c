"""inseq 0.7.1: an `attr_pos_start` inside the prompt is moved to its end.

Claim: positions of the prompt cannot be attributed; one that is asked for is replaced by the first position behind
the prompt, without an error.
Documentation followed: documentation of `attribute`: `attr_pos_start`.
Right: a start behind the prompt.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Ask for position 2; `holds` where another is taken."""
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    text = "the cat sat on"
    length = len(tokenizer(text)["input_ids"])
    found = wrapped.attribute(text, text + "!", attr_pos_start=2, attributed_fn="logit", show_progress=False)
    start = found.sequence_attributions[0].attr_pos_start
    return {
        "claim": "a start inside the prompt is moved to its end, without an error",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"start": start},
        "expected": {"start": 2},
        "holds": start == length,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
