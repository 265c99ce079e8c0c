"""transformer-lens 4.3.0: a hook that returns one position for all is broadcast over the positions.

Claim: what a hook returns is not held to the shape that it got: (batch, 1, d_model) at `hook_attn_out` is added to
every position.
Documentation followed: main demo: `run_with_hooks`; a hook returns the new activation.
Right: return the shape that came in. Through crosslens a value of another shape is an error before the model runs.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Return the mean over positions with its axis kept; `holds` where it is taken."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    def mean(act: torch.Tensor, hook: Any) -> torch.Tensor:
        return act.mean(1, keepdim=True)

    with torch.no_grad():
        plain = bridge(ids)
        try:
            got, error = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_attn_out", mean)]), "no error"
        except RuntimeError as refused:
            got, error = plain, str(refused)
    effect = float((got - plain).abs().max())
    return {
        "claim": "what a hook returns is broadcast to the shape that it got",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"error": error, "effect on the logits": effect},
        "expected": {"error": "one that names the hook and both shapes", "effect on the logits": 0.0},
        "holds": error == "no error" and effect > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
