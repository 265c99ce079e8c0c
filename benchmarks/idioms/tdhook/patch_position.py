"""Patch the residual stream at one position, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Activation and
parameter replacement"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    target = Target(f"model.layers.{layer}", "activation", 1, (position,))
    with torch.no_grad(), HookSession(model) as session:
        captured = session.capture(target)
        model(source)
    with torch.no_grad(), HookSession(model) as session:
        session.replace(target, captured.values[0])
        logits: Tensor = model(ids).logits
    return logits
