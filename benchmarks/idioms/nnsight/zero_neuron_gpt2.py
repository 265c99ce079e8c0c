"""Zero one neuron, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, patterns/ablation
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with torch.no_grad(), lm.trace(ids):
        lm.transformer.h[layer].mlp.c_proj.input[..., neuron] = 0
        logits: Tensor = lm.output.logits.save()
    return logits
