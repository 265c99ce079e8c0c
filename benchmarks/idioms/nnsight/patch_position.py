"""Patch the residual stream at one position, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/activation-patching
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with torch.no_grad(), lm.trace(source):
        value = lm.model.layers[layer].output[:, position].save()
    with torch.no_grad(), lm.trace(ids):
        lm.model.layers[layer].output[:, position] = value
        logits: Tensor = lm.output.logits.save()
    return logits
