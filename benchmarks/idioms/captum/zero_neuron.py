"""Zero one neuron, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Feature Ablation", layer_baselines and layer_mask
Serves: llama
Note: It gives the difference that the ablation makes to the output, not the output.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerFeatureAblation
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    mask = (torch.arange(model.config.intermediate_size) == neuron).long().expand(1, ids.shape[1], -1)
    ablation = LayerFeatureAblation(lambda ids: model(ids).logits.flatten(1), model.model.layers[layer].mlp.down_proj)
    with torch.no_grad():
        change = ablation.attribute(ids, layer_baselines=0, layer_mask=mask, attribute_to_layer_input=True)
        logits: Tensor = model(ids).logits
    return logits - change[:, 0, neuron].view_as(logits)
