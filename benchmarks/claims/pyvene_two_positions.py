"""pyvene 0.1.8: two positions given as a list act at the second alone.

Claim: `{"base": [2, 5]}` is read as source location 2 and base location 5; a list of one or of three acts at all of
them.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros", with a list of positions.
Right: `{"base": [[[2, 5]]]}`, whose levels are site, row and position. Through crosslens `positions=[2, 5]` are both.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Zero two positions in either form; `holds` where the short one acts at position 5 alone."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    with torch.no_grad():
        got = _zeroed(inputs, {"base": [2, 5]})
        both = _zeroed(inputs, {"base": [[[2, 5]]]})
        second = _zeroed(inputs, {"base": [[[5]]]})
    return {
        "claim": "two positions in a list act at the second alone",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"off from both positions": _off(got, both), "off from the second alone": _off(got, second)},
        "expected": {"off from both positions": 0.0, "off from the second alone": _off(both, second)},
        "holds": _off(got, both) > 1e-3 and _off(got, second) == 0,
    }


def _zeroed(inputs: dict[str, torch.Tensor], locations: Any, **site: Any) -> torch.Tensor:
    model, _ = tiny_model("gpt2")
    sites = {"layer": 0, "component": "block_output", "intervention_type": pv.ZeroIntervention} | site
    logits: torch.Tensor = pv.IntervenableModel(sites, model=model)(base=inputs, unit_locations=locations)[1].logits
    return logits


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
