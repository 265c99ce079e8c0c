"""Record a residual stream of a padded batch, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook";
transformers, "Padding side", for the position ids
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    kept: list[Tensor] = []
    handle = model.transformer.h[layer].register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        model(ids, attention_mask=mask, position_ids=positions)
    handle.remove()
    return kept[0]
