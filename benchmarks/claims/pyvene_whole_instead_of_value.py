"""pyvene 0.1.8: `value_output` of GPT-2 without locations zeroes the query.

Claim: query, key and value of GPT-2 are parts of one tensor, which is split only where locations are given; without
them the first part of the unsplit tensor is acted on.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros", component `value_output`, all positions.
Right: give every position. Through crosslens `attn.v` is the value.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Zero the values; `holds` where the queries are zero instead."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    with torch.no_grad():
        got = _zeroed(inputs, None, component="value_output")
        want = _zeroed(inputs, {"base": [[list(range(8))]]}, component="value_output")
        queries = _zeroed(inputs, {"base": [[list(range(8))]]}, component="query_output")
    return {
        "claim": "zeroing the values of GPT-2 without locations zeroes the queries",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"off from zeroed values": _off(got, want), "off from zeroed queries": _off(got, queries)},
        "expected": {"off from zeroed values": 0.0, "off from zeroed queries": _off(want, queries)},
        "holds": _off(got, want) > 1e-3 and _off(got, queries) < 1e-5,
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
