"""Record what each head gives, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    layers = [block.attn.c_proj for block in model.transformer.h]
    heads = LayerActivation(lambda ids: model(ids).logits, layers).attribute(ids, attribute_to_layer_input=True)
    return torch.stack(heads).view(len(heads), *ids.shape, model.config.num_attention_heads, -1)
