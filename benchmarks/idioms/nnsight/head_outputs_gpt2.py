"""Record what each head gives, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/per-head-attention
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel, save
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with torch.no_grad(), lm.trace(ids):
        heads = save([])
        for block in lm.transformer.h:
            heads.append(block.attn.c_proj.input)
    return torch.stack(heads).view(len(heads), *ids.shape, model.config.num_attention_heads, -1)
