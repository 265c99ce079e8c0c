"""Record a residual stream of a padded batch, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/invoke-and-batching
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, texts: list[str], layer: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with torch.no_grad(), lm.trace(texts):
        residual: Tensor = lm.transformer.h[layer].output.save()
    return residual
