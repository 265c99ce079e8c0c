"""Record the residual stream behind every block, with captum.

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
    activation = LayerActivation(lambda ids: model(ids).logits, list(model.transformer.h))
    return torch.stack(activation.attribute(ids))
