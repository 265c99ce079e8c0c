"""pyvene 0.1.8: a dictionary of sources that is used again returns earlier collections too.

Claim: the dictionary given as `source_representations` is filled with what is collected; a second call with it
returns the collections of both.
Documentation followed: tutorial pyvene_101, "Activation Collection at Intervened Location".
Right: a new dictionary for each call. Through crosslens nothing of the caller's is written to.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Patch and collect three times with one dictionary; `holds` where the collections add up."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("gpt2")
    patch = {"layer": 0, "component": "block_output", "intervention": pv.VanillaIntervention()}
    collect = {"layer": 1, "component": "block_output", "intervention": pv.CollectIntervention(keep_last_dim=True)}
    both = pv.IntervenableModel([patch, collect], model=model)
    sources, numbers = {both.sorted_keys[0]: torch.zeros(1, 1, model.config.n_embd)}, []
    locations = {"sources->base": ([None, None], [[[3]], [[3]]])}
    with torch.no_grad():
        for _ in range(3):
            (_, collected), _ = both(base=inputs, unit_locations=locations, source_representations=sources)
            numbers.append(len(collected))
    return {
        "claim": "calls with one dictionary of sources return the collections of earlier calls",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"tensors collected by each call": numbers, "entries of the dictionary": len(sources)},
        "expected": {"tensors collected by each call": [1, 1, 1], "entries of the dictionary": 1},
        "holds": numbers == [1, 2, 3],
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
