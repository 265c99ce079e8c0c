"""Record the residual stream behind every block, with PyTorch hooks.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    kept: list[Tensor] = []
    blocks = model.model.layers
    handles = [
        block.register_forward_hook(lambda module, args, output: kept.append(output.clone())) for block in blocks
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return torch.stack(kept)
