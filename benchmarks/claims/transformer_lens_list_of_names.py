"""transformer-lens 4.3.0: of a list of names to cache, one that does not exist is left out without an error.

Claim: `names_filter` given as one name that matches nothing is an error, given as a list it is not: names that match
nothing are left out.
Documentation followed: docstring of `run_with_cache`: `names_filter` is a name, a list of names or a function.
Right: compare the list with `bridge.hook_dict` first. Through crosslens a site that matches nothing is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Ask for a misspelled name among others; `holds` where nothing says so."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    names = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pots"]
    try:
        _, cache = bridge.run_with_cache(ids, names_filter=names)
        missing, error = [name for name in names if name not in list(cache.keys())], "no error"
    except KeyError as refused:
        missing, error = [], str(refused)
    return {
        "claim": "a misspelled name in a list of names to cache is left out without an error",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"error": error, "missing from the cache": missing},
        "expected": {"error": f"one that names {names[1]}", "missing from the cache": []},
        "holds": missing == names[1:],
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
