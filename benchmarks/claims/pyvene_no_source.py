"""pyvene 0.1.8: an interchange without a source changes nothing, without an error.

Claim: a call that forgets `sources=` runs, and its outputs are those of the plain model.
Documentation followed: tutorial pyvene_101, "Interchange Interventions".
Right: give `sources=` or `source_representations=`. Through crosslens `replace` has its value as an argument.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Call without a source; `holds` where the logits are the plain ones."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("gpt2")
    with torch.no_grad():
        plain = model(**inputs).logits
        sites = {"layer": 0, "component": "block_output", "intervention_type": pv.VanillaIntervention}
        patching = pv.IntervenableModel(sites, model=model)
        try:
            effect, error = _off(patching(base=inputs, unit_locations={"base": 3})[1].logits, plain), "no error"
        except (ValueError, AssertionError) as refused:
            effect, error = 0.0, str(refused)
    return {
        "claim": "an interchange without a source is a plain forward, without an error",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"error": error, "effect on the logits": effect},
        "expected": {"error": "one that asks for the source", "effect on the logits": 0.0},
        "holds": error == "no error" and effect == 0,
    }


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
