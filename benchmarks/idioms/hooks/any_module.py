"""Record the hidden layer of a network of one's own, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    # --- operation
    kept: list[Tensor] = []
    handle = model.hidden.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    return kept[0]
