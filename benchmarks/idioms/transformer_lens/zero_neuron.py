"""Zero one neuron, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "run_with_hooks -
intervene during the forward pass"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")

    # --- operation
    def ablate(post: Tensor, hook: Any) -> Tensor:
        post[..., neuron] = 0
        return post

    return bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", ablate)])
