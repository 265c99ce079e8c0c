"""Record the hidden layer of a network of one's own, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    # --- operation
    return LayerActivation(model, model.hidden).attribute(images)
