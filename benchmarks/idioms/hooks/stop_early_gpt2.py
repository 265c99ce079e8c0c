"""Record a residual stream and run no further, with a PyTorch hook that raises.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook"
Serves: gpt2
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    # --- operation
    class Stop(Exception):
        pass

    kept: list[Tensor] = []

    def stop(module: Any, args: Any, output: Tensor) -> None:
        kept.append(output.clone())
        raise Stop

    handle = model.transformer.h[layer].register_forward_hook(stop)
    with contextlib.suppress(Stop), torch.no_grad():
        model(ids)
    handle.remove()
    return kept[0]
