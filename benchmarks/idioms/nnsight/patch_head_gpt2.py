"""Patch what one head gives, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/per-head-attention and
patterns/activation-patching
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    size = model.config.hidden_size // model.config.num_attention_heads
    units = slice(head * size, (head + 1) * size)
    with torch.no_grad(), lm.trace(source):
        value = lm.transformer.h[layer].attn.c_proj.input[..., units].save()
    with torch.no_grad(), lm.trace(ids):
        lm.transformer.h[layer].attn.c_proj.input[..., units] = value
        logits: Tensor = lm.output.logits.save()
    return logits
