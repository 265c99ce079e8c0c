"""Differentiate a logit difference at a residual stream, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook";
torch.autograd.grad
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    kept: list[Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(ids).logits[0, -1]
    handle.remove()
    return torch.autograd.grad(logits[token] - logits[other], kept)[0]
