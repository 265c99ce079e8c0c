"""Record a residual stream while tokens are generated, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "Context-scoped
lifecycle"; TransformerBridge.generate
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    kept: list[Tensor] = []
    with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", lambda resid, hook: kept.append(resid.clone()))]):
        bridge.generate(ids, max_new_tokens=new_tokens, do_sample=False, verbose=False)
    return torch.cat(kept, dim=1)
