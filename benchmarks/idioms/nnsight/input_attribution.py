"""Embedding times gradient, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/gradient-based-attribution
Serves: llama
"""

from __future__ import annotations

from typing import Any

from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, token: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with lm.trace(ids):
        embed = lm.model.embed_tokens.output
        with lm.output.logits[0, -1, token].backward():
            product: Tensor = (embed * embed.grad).save()
    return product.sum(-1)[0]
