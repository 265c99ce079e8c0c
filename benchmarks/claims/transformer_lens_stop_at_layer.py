"""transformer-lens 4.3.0: `stop_at_layer` beyond the last layer runs the whole model; hooks behind the stop never fire.

Claim: a layer out of range gives logits where the residual stream was asked for; a hook at a layer that is not
reached is dropped. Neither says so.
Documentation followed: docstring of `forward`: `stop_at_layer`, "Layer to stop forward pass at".
Right: a layer from 1 to the number of layers, and hooks before it. Through crosslens both are errors.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Stop at a layer that is not there, and hook one that is not reached; `holds` where neither is an error."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    calls: list[str] = []

    def seen(act: torch.Tensor, hook: Any) -> None:
        calls.append(hook.name)

    with torch.no_grad():
        full = bridge(ids)
        try:
            stopped = list(bridge(ids, stop_at_layer=99).shape)
        except (ValueError, IndexError) as refused:
            stopped = [str(refused)]
        bridge.run_with_hooks(ids, stop_at_layer=1, fwd_hooks=[("blocks.2.hook_resid_post", seen)])
    return {
        "claim": "a layer out of range to stop at, and a hook behind the stop, are no errors",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"shape at layer 99 of 3": stopped, "calls of the hook behind the stop": len(calls)},
        "expected": {"shape at layer 99 of 3": "an error", "calls of the hook behind the stop": "an error"},
        "holds": stopped == list(full.shape) and not calls,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
