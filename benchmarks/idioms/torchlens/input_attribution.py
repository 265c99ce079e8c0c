"""Embedding times gradient, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Forward AND backward pass"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    # --- operation
    path = "model.embed_tokens"
    capture = tl.options.CaptureOptions(save_grads=tl.module(path))
    log = tl.trace(model, ids, {"use_cache": False}, capture=capture)
    log.log_backward(log[log.output_layers[0]].out[0, -1, token])
    product: Tensor = log[path].out * log[path].grad
    return product.sum(-1)[0]
