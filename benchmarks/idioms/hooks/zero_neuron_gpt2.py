"""Zero one neuron, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_pre_hook"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    def ablate(module: Any, args: Any) -> Tensor:
        neurons: Tensor = args[0].clone()
        neurons[..., neuron] = 0
        return neurons

    handle = model.transformer.h[layer].mlp.c_proj.register_forward_pre_hook(ablate)
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    handle.remove()
    return logits
