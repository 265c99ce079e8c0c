"""Record the attention of every block, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/attention-patterns, "All layers in one
trace"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel, save
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    model.set_attn_implementation("eager")
    # --- operation
    with torch.no_grad(), lm.trace(ids):
        patterns = save([])
        for block in lm.model.layers:
            _, weights = block.self_attn.source.attention_interface_1.output
            patterns.append(weights)
    return torch.stack(patterns)
