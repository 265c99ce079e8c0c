"""Record a residual stream of a padded batch, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation", additional_forward_args
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    def forward(ids: Tensor, mask: Tensor, positions: Tensor) -> Any:
        return model(ids, attention_mask=mask, position_ids=positions).logits

    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    activation = LayerActivation(forward, model.transformer.h[layer])
    return activation.attribute(ids, additional_forward_args=(mask, positions))
