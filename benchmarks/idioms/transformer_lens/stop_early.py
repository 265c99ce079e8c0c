"""Record a residual stream and run no further, with TransformerLens.

Documentation: TransformerBridge.forward, argument stop_at_layer
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    return bridge(ids, stop_at_layer=layer + 1)
