"""Steer a generation, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: llama
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    # --- operation
    handle = model.model.layers[layer].register_forward_hook(lambda module, args, output: output + vector)
    tokens: Tensor = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    handle.remove()
    return tokens
