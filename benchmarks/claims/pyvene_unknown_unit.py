"""pyvene 0.1.8: a misspelled `unit` is taken for positions.

Claim: any word that is not known as a unit acts like `pos`; nothing says so.
Documentation followed: documentation of `IntervenableConfig`: `unit`.
Right: spell it. Through crosslens an unknown option is a TypeError.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Zero by the unit `heads`, which does not exist; `holds` where position 3 is zero."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    with torch.no_grad():
        want = _zeroed(inputs, {"base": 3})
        try:
            off, error = _off(_zeroed(inputs, {"base": 3}, unit="heads"), want), "no error"
        except (ValueError, KeyError, NotImplementedError) as refused:
            off, error = float("inf"), str(refused)
    return {
        "claim": "a unit that does not exist is taken for positions",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"error": error, "is position 3": off == 0},
        "expected": {"error": "one that lists the units", "is position 3": False},
        "holds": error == "no error" and off == 0,
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
