"""Patch what one head gives, with PyTorch hooks.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_pre_hook"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    # --- operation
    kept: list[Tensor] = []
    projection = model.transformer.h[layer].attn.c_proj
    handle = projection.register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
    with torch.no_grad():
        model(source)
    handle.remove()

    def patch(module: Any, args: Any) -> Any:
        heads = args[0].clone().unflatten(-1, (model.config.num_attention_heads, -1))
        heads[:, :, head] = kept[0].view_as(heads)[:, :, head]
        return heads.flatten(-2)

    handle = projection.register_forward_pre_hook(patch)
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    handle.remove()
    return logits
