"""Record a residual stream and run no further, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: llama
Wrong: The value is right, but captum has no way to stop: the whole model runs.
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    # --- operation
    return LayerActivation(lambda ids: model(ids).logits, model.model.layers[layer]).attribute(ids)
