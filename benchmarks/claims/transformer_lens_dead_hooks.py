"""transformer-lens 4.3.0: some hook points of a Llama never fire, and hooking them is no error.

Claim: `hook_pos_embed`, `rotary_emb.hook_out` and `blocks.L.attn.hook_hidden_states` are listed in `hook_dict`, take
a hook, and are not called in a forward.
Documentation followed: main demo: `hook_dict` lists the hook points, `run_with_hooks` runs a function at each.
Right: count the calls. Through crosslens a site whose hook is not called is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Hook every such point; `holds` where one exists and none is called."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    names = [
        name
        for name in ("hook_pos_embed", "rotary_emb.hook_out", "blocks.0.attn.hook_hidden_states")
        if name in bridge.hook_dict
    ]
    calls: list[str] = []

    def seen(act: Any, hook: Any) -> None:
        calls.append(hook.name)

    with torch.no_grad():
        bridge.run_with_hooks(ids, fwd_hooks=[(name, seen) for name in names])
    return {
        "claim": "three hook points of a Llama are listed and never called",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"hook points": names, "calls": len(calls)},
        "expected": {"hook points": names, "calls": len(names)},
        "holds": bool(names) and not calls,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
