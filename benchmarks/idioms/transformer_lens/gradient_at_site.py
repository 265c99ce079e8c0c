"""Differentiate a logit difference at a residual stream, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "Gradient intervention
via backward hook"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    kept: list[Tensor] = []
    hook = (f"blocks.{layer}.hook_resid_post", lambda gradient, hook: kept.append(gradient.clone()))
    with bridge.hooks(bwd_hooks=[hook]):
        logits = bridge(ids)[0, -1]
        (logits[token] - logits[other]).backward()
    return kept[0]
