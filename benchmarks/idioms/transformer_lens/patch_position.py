"""Patch the residual stream at one position, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "Activation patching"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    name = f"blocks.{layer}.hook_resid_post"
    _, cache = bridge.run_with_cache(source, names_filter=name)

    def patch(resid: Tensor, hook: Any) -> Tensor:
        resid[:, position] = cache[name][:, position]
        return resid

    return bridge.run_with_hooks(ids, fwd_hooks=[(name, patch)])
