"""penzai 0.2.5: one `SaveIntermediate` inserted after every block keeps the last block's value alone.

Claim: `insert_after(SaveIntermediate())` at a selection of several layers puts one and the same variable at each.
Documentation followed: the tutorial "How to Think in Penzai", sections on selectors, and `toolshed.save_intermediates`.
Right: make a variable for each with `apply_with_selected_index`. Through crosslens every block has its own.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz
from penzai.toolshed.save_intermediates import SaveIntermediate


def main() -> dict[str, Any]:
    """Save after each of three layers; `holds` where fewer than three values are kept."""
    layers = [pz.nn.Affine.from_config(f"layer{i}", jax.random.key(i), {"x": 4}, {"x": 4}) for i in range(3)]
    model = pz.nn.Sequential(layers)
    saving = pz.select(model).at_instances_of(pz.nn.Affine).insert_after(SaveIntermediate())
    saving(pz.nx.wrap(jnp.ones(4)).tag("x"))
    _, variables = pz.unbind_state_vars(saving)
    return {
        "claim": "one inserted SaveIntermediate keeps the last value alone",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"values kept of 3 layers": len(variables)},
        "expected": {"values kept of 3 layers": 3},
        "holds": len(variables) < 3,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
