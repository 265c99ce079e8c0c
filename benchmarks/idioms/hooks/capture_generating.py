"""Record a residual stream while tokens are generated, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    kept: list[Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    handle.remove()
    return torch.cat(kept, dim=1)
