"""pyvene 0.1.8: locations for one row write that row's value into every row.

Claim: with two rows and locations for one, an interchange puts the value of row 0 of the source into row 1 too.
Documentation followed: tutorial pyvene_101, "Interchange Interventions", with a batch of two.
Right: locations for each row, `[[[3], [3]]]`. Through crosslens a position holds for every row and values are each
row's own.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Interchange at position 3; `holds` where row 1 gets row 0's value."""
    base, source = ({"input_ids": torch.arange(start, start + 16).view(2, 8)} for start in (3, 20))
    with torch.no_grad():
        got, want = _patched(base, source, [[[3]]]), _patched(base, source, [[[3], [3]]])
    off = [_off(a, b) for a, b in zip(got, want, strict=True)]
    return {
        "claim": "locations for one row write the value of row 0 into every row",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"logits of row 0 off by": off[0], "logits of row 1 off by": off[1]},
        "expected": {"logits of row 0 off by": 0.0, "logits of row 1 off by": 0.0},
        "holds": off[0] == 0 and off[1] > 1e-3,
    }


def _patched(base: Any, source: Any, locations: Any) -> torch.Tensor:
    model, _ = tiny_model("gpt2")
    sites = {"layer": 0, "component": "block_output", "intervention_type": pv.VanillaIntervention}
    patching = pv.IntervenableModel(sites, model=model)
    both = {"sources->base": (locations, locations)}
    logits: torch.Tensor = patching(base=base, sources=[source], unit_locations=both)[1].logits
    return logits


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
