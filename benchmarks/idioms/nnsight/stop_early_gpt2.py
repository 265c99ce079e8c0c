"""Record a residual stream and run no further, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/stop-and-early-exit
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with torch.no_grad(), lm.trace(ids) as tracer:
        residual: Tensor = lm.transformer.h[layer].output.save()
        tracer.stop()
    return residual
