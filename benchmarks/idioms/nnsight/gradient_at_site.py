"""Differentiate a logit difference at a residual stream, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/backward-and-grad and
patterns/attribution-patching
Serves: llama
"""

from __future__ import annotations

from typing import Any

from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with lm.trace(ids):
        stream = lm.model.layers[layer].output
        logits = lm.output.logits[0, -1]
        with (logits[token] - logits[other]).backward():
            gradient: Tensor = stream.grad.save()
    return gradient
