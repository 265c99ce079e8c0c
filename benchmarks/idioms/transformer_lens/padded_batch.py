"""Record a residual stream of a padded batch, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "run_with_cache - read
everything"; TransformerBridge.forward, argument attention_mask
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    name = f"blocks.{layer}.hook_resid_post"
    _, cache = bridge.run_with_cache(ids, attention_mask=mask, names_filter=name)
    return cache[name]
