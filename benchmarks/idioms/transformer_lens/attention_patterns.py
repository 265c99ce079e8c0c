"""Record the attention of every block, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "run_with_cache - read
everything"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, ids: Tensor) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    # --- operation
    _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    return torch.stack([cache["pattern", layer] for layer in range(bridge.cfg.n_layers)])
