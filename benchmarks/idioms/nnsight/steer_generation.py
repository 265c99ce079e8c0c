"""Steer a generation, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/steering and usage/iter
Serves: llama
"""

from __future__ import annotations

from typing import Any

from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with lm.generate(ids, max_new_tokens=new_tokens, do_sample=False) as tracer:
        for _ in tracer.iter[:new_tokens]:
            lm.model.layers[layer].output += vector
        tokens: Tensor = tracer.result.save()
    return tokens
