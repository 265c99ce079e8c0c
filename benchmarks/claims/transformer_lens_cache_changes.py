"""transformer-lens 4.3.0: a cached activation changes when a later hook edits in place.

Claim: `run_with_cache` keeps the tensor that passed and no copy; a hook that writes into its argument, as those of
the main demo do, changes what the cache holds of the place before it.
Documentation followed: main demo: `run_with_cache`, and `head_ablation_hook`, which assigns into its argument.
Right: clone before writing, or clone what is cached. Through crosslens every capture is a copy.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Cache block 0's output while block 1's input is zeroed; `holds` where the cache has zeros."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    def zero(act: torch.Tensor, hook: Any) -> torch.Tensor:
        act[:] = 0
        return act

    site = "blocks.0.hook_resid_post"
    with torch.no_grad():
        _, before = bridge.run_with_cache(ids)
        with bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", zero)]):
            _, cache = bridge.run_with_cache(ids)
    return {
        "claim": "an in-place hook changes what is cached of the place before it",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"largest value of block 0's output": float(cache[site].abs().max())},
        "expected": {"largest value of block 0's output": float(before[site].abs().max())},
        "holds": float(cache[site].abs().max()) == 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
