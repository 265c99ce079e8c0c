"""Zero one neuron, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Forward input
operations"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    target = Target(f"transformer.h.{layer}.mlp.c_proj", "activation", -1, (neuron,), output_path=(0,))
    with torch.no_grad(), HookSession(model) as session:
        session.replace(target, 0, direction="fwd_pre")
        logits: Tensor = model(ids).logits
    return logits
