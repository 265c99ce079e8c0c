"""Record the residual stream behind every block, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    activation = LayerActivation(lambda ids: model(ids).logits, list(model.model.layers))
    return torch.stack(activation.attribute(ids))
