"""inseq 0.7.1: a misspelled option runs with the default.

Claim: `nsteps` for `n_steps` is reported in a log message at the level of a warning, and the attribution is the one
of 50 steps.
Documentation followed: "Quickstart", `integrated_gradients` with `n_steps`.
Right: spell `n_steps`. Through crosslens an unknown option is a TypeError.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Misspell the number of steps; `holds` where the scores are those of the default."""
    scores = {name: _scores({name: 3}) for name in ("nsteps", "n_steps")}
    default = _scores({})
    return {
        "claim": "a misspelled option is reported in a log and the default is taken",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"equals the default": bool(torch.equal(scores["nsteps"], default))},
        "expected": {"equals the default": bool(torch.equal(scores["n_steps"], default))},
        "holds": bool(torch.equal(scores["nsteps"], default)) and not torch.equal(scores["n_steps"], default),
    }


def _scores(options: dict[str, int]) -> torch.Tensor:
    model, tokenizer = tiny_model("llama")
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "integrated_gradients", tokenizer=tokenizer, device="cpu")
    found = wrapped.attribute("a cat", "a cat!", attributed_fn="logit", show_progress=False, **options)
    scores: torch.Tensor = found.sequence_attributions[0].target_attributions[:4]
    return scores


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
