"""Embedding times gradient, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Gradient X Activation"; tutorial "Interpreting BERT Models",
for attribution at the embedding layer
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerGradientXActivation
from torch import Tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    # --- operation
    method = LayerGradientXActivation(lambda ids: model(ids).logits[:, -1, token], model.get_input_embeddings())
    return method.attribute(ids).sum(-1)[0]
