"""Patch what one head gives, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Feature Ablation", layer_baselines and layer_mask
Serves: llama
Note: It gives the difference that the patch makes to the output, not the output.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation, LayerFeatureAblation
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    # --- operation
    def forward(ids: Tensor) -> Any:
        return model(ids).logits.flatten(1)

    projection = model.model.layers[layer].self_attn.o_proj
    value = LayerActivation(forward, projection).attribute(source, attribute_to_layer_input=True)
    size = model.config.hidden_size // model.config.num_attention_heads
    mask = (torch.arange(model.config.hidden_size) // size == head).long()[None, None]
    with torch.no_grad():
        change = LayerFeatureAblation(forward, projection).attribute(
            ids, layer_baselines=value, layer_mask=mask, attribute_to_layer_input=True
        )
        logits: Tensor = model(ids).logits
    return logits - change[:, 0, head * size].view_as(logits)
