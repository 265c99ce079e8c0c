"""Record the hidden layer of a network of one's own, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, models/nnsight-base
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import NNsight
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    net = NNsight(model)
    # --- operation
    with torch.no_grad(), net.trace(images):
        hidden: Tensor = net.hidden.output.save()
    return hidden
