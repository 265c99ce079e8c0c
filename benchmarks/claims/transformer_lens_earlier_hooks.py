"""transformer-lens 4.3.0: a hook that was on the attention module before the model was wrapped never fires again.

Claim: wrapping replaces modules of the caller's model in place; the bridge computes attention itself and does not
call the module that it took the place of.
Documentation followed: the README's `TransformerBridge`; `hf_model=` wraps a model that is in memory.
Right: register hooks after wrapping, or wrap a copy that shares the weights. Through crosslens the model is not
wrapped.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Count a hook's calls before and after wrapping; `holds` where it is silent."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids, calls = torch.arange(3, 11)[None], []
    model.model.layers[0].self_attn.register_forward_hook(lambda module, args, output: calls.append(1))
    with torch.no_grad():
        model(ids)
        before = len(calls)
        build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
        model(ids)
    return {
        "claim": "wrapping silences hooks that were on attention modules before",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"calls before": before, "calls after": len(calls) - before},
        "expected": {"calls before": 1, "calls after": 1},
        "holds": before == 1 and len(calls) == 1,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
