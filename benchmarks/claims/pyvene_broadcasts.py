"""pyvene 0.1.8: what a function returns is broadcast to the shape that it got.

Claim: a function given as an intervention may return (batch, pos, 1) for (batch, pos, d_model); it is written into
every feature.
Documentation followed: tutorial pyvene_101, interventions given as functions.
Right: return the shape that came in. Through crosslens another shape is an error before the model runs.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Return the mean over features with its axis kept; `holds` where it is taken."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("llama")
    with torch.no_grad():
        plain = model(**inputs).logits
        site = {
            "component": "model.layers[1].mlp.output",
            "intervention": lambda base, source: base.mean(-1, keepdim=True),
        }
        try:
            got, error = pv.IntervenableModel([site], model=model)(base=inputs)[1].logits, "no error"
        except (RuntimeError, ValueError) as refused:
            got, error = plain, str(refused)
    return {
        "claim": "what a function returns is broadcast over the features",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"error": error, "effect on the logits": _off(got, plain)},
        "expected": {"error": "one that names both shapes", "effect on the logits": 0.0},
        "holds": error == "no error" and _off(got, plain) > 1e-3,
    }


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
