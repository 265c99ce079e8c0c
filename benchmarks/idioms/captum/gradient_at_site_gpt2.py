"""Differentiate a logit difference at a residual stream, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Gradient X Activation", multiply_by_inputs
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerGradientXActivation
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    def difference(ids: Tensor) -> Any:
        logits = model(ids).logits[:, -1]
        return logits[:, token] - logits[:, other]

    block = model.transformer.h[layer]
    return LayerGradientXActivation(difference, block, multiply_by_inputs=False).attribute(ids)
