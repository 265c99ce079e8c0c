"""transformer-lens 4.3.0: an edit at `hook_resid_mid` reaches the MLP and not the residual stream.

Claim: `blocks.L.hook_resid_mid` is the input of the second norm; what a hook returns there goes into the MLP alone,
and the residual stream behind it holds the old value.
Documentation followed: the README's `TransformerBridge`, "hook names of the main demo"; `resid_mid` is the residual
stream between attention and MLP.
Right: add the change at `blocks.L.hook_attn_out`, which reaches both. Through crosslens `resid_mid` does.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Add a vector to the stream behind the attention of block 1; `holds` where the MLP alone gets it."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    def add(act: torch.Tensor, hook: Any) -> torch.Tensor:
        return act + 1

    with torch.no_grad():
        plain = bridge(ids)
        got = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_resid_mid", add)])
        want = bridge.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_attn_out", add)])
    off, effect = float((got - want).abs().max()), float((want - plain).abs().max())
    return {
        "claim": "an edit at hook_resid_mid does not reach the residual stream behind it",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"effect of the change on the logits": effect, "logits off by": off},
        "expected": {"effect of the change on the logits": effect, "logits off by": 0.0},
        "holds": off > 0.01,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
