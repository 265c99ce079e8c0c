"""Differentiate a logit difference at a residual stream, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Forward AND backward pass"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    path = f"transformer.h.{layer}"
    capture = tl.options.CaptureOptions(save_grads=tl.module(path))
    log = tl.trace(model, ids, {"use_cache": False}, capture=capture)
    logits = log[log.output_layers[0]].out[0, -1]
    log.log_backward(logits[token] - logits[other])
    return log[path].grad
