"""Patch the residual stream at one position, with PyTorch hooks.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    kept: list[Tensor] = []
    block = model.model.layers[layer]
    handle = block.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    with torch.no_grad():
        model(source)
    handle.remove()

    def patch(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, position] = kept[0][:, position]
        return output

    handle = block.register_forward_hook(patch)
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    handle.remove()
    return logits
