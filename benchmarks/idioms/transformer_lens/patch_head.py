"""Patch what one head gives, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "Activation patching"
and "Zero-ablate a head"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = bridge.run_with_cache(source, names_filter=name)

    def patch(z: Tensor, hook: Any) -> Tensor:
        z[:, :, head] = cache[name][:, :, head]
        return z

    return bridge.run_with_hooks(ids, fwd_hooks=[(name, patch)])
