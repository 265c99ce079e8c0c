"""Record the attention of every block, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    model.set_attn_implementation("eager")
    # --- operation
    activation = LayerActivation(lambda ids: model(ids).logits, [block.attn for block in model.transformer.h])
    return torch.stack([weights for _, weights in activation.attribute(ids)])
