"""Record the residual stream behind every block, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/save and usage/access-and-modify
Serves: llama
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
        residuals = save([])
        for block in lm.model.layers:
            residuals.append(block.output)
    return torch.stack(residuals)
