"""transformer-lens 4.3.0: `run_with_hooks(fwd_hook=...)` runs without the hook and without an error.

Claim: options that the method does not know go on to the forward, which drops them: `fwd_hook` for `fwd_hooks` gives
the unedited logits.
Documentation followed: main demo: `run_with_hooks`.
Right: spell `fwd_hooks`. Through crosslens an unknown option is a TypeError.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Misspell the option; `holds` where the logits are those of the plain model."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11)[None]
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    def zero(act: torch.Tensor, hook: Any) -> torch.Tensor:
        return 0 * act

    hooks = [("blocks.1.hook_attn_out", zero)]
    with torch.no_grad():
        plain, right = bridge(ids), bridge.run_with_hooks(ids, fwd_hooks=hooks)
        try:
            effect, error = float((bridge.run_with_hooks(ids, fwd_hook=hooks) - plain).abs().max()), "no error"
        except TypeError as refused:
            effect, error = 0.0, str(refused)
    return {
        "claim": "a misspelled option is dropped, and the forward runs without the hook",
        "library": "transformer-lens",
        "version": version("transformer-lens"),
        "upstream": "not found upstream",
        "observed": {"error": error, "effect with fwd_hook": effect},
        "expected": {"error": "a TypeError", "effect with fwd_hook": float((right - plain).abs().max())},
        "holds": error == "no error" and effect == 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
