"""inseq 0.7.1: the step score `perplexity` is 2 to the power of a cross-entropy in nats.

Claim: the cross-entropy is in nats, so that perplexity is e to its power; 2 is taken.
Documentation followed: documentation of step functions: `perplexity`, `crossentropy`.
Right: `exp` of the step score `crossentropy`.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import Any

import inseq

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Ask for both; `holds` where one is 2 to the power of the other."""
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "saliency", tokenizer=tokenizer, device="cpu")
    found = wrapped.attribute(
        ["a cat", "the dog sat"],
        step_scores=["crossentropy", "perplexity"],
        generation_args={"max_new_tokens": 1},
        show_progress=False,
    )
    scores = found.sequence_attributions[0].step_scores
    entropy, got = (float(scores[name][0]) for name in ("crossentropy", "perplexity"))
    return {
        "claim": "perplexity is 2 to the power of a cross-entropy in nats",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"perplexity": got},
        "expected": {"perplexity": math.exp(entropy)},
        "holds": abs(got - 2**entropy) < 1e-3 * got and abs(got - math.exp(entropy)) > 0.1 * got,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
