"""Record what each head gives, with PyTorch hooks.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_pre_hook"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    kept: list[Tensor] = []
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
        for block in model.transformer.h
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return torch.stack(kept).view(len(kept), *ids.shape, model.config.num_attention_heads, -1)
