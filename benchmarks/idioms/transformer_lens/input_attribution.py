"""Embedding times gradient, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "Gradient intervention
via backward hook"
Serves: llama, gpt2
Note: It has no method of attribution for this; the product is taken by hand.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, token: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    kept: list[Tensor] = []
    forward = ("hook_embed", lambda embed, hook: kept.append(embed.detach().clone()))
    backward = ("hook_embed", lambda gradient, hook: kept.append(gradient.clone()))
    with bridge.hooks(fwd_hooks=[forward], bwd_hooks=[backward]):
        bridge(ids)[0, -1, token].backward()
    return (kept[0] * kept[1]).sum(-1)[0]
