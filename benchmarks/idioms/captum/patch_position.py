"""Patch the residual stream at one position, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Feature Ablation", layer_baselines and layer_mask
Serves: llama
Note: It gives the difference that the patch makes to the output, not the output.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation, LayerFeatureAblation
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    def forward(ids: Tensor) -> Any:
        return model(ids).logits.flatten(1)

    block = model.model.layers[layer]
    value = LayerActivation(forward, block).attribute(source)
    mask = (torch.arange(ids.shape[1]) == position).long()[None, :, None]
    with torch.no_grad():
        change = LayerFeatureAblation(forward, block).attribute(ids, layer_baselines=value, layer_mask=mask)
        logits: Tensor = model(ids).logits
    return logits - change[:, position, 0].view_as(logits)
