"""Record a residual stream while tokens are generated, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/iter, "Canonical pattern"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel, save
from torch import Tensor


def run(model: Any, tokenizer: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    # --- operation
    with lm.generate(ids, max_new_tokens=new_tokens, do_sample=False) as tracer:
        residuals = save([])
        for _ in tracer.iter[:new_tokens]:
            residuals.append(lm.transformer.h[layer].output)
    return torch.cat(residuals, dim=1)
