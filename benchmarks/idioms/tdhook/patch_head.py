"""Patch what one head gives, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Forward input
operations"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    # --- operation
    size = model.config.hidden_size // model.config.num_attention_heads
    units = tuple(range(head * size, (head + 1) * size))
    target = Target(f"model.layers.{layer}.self_attn.o_proj", "activation", -1, units, output_path=(0,))
    with torch.no_grad(), HookSession(model) as session:
        captured = session.capture(target, direction="fwd_pre")
        model(source)
    with torch.no_grad(), HookSession(model) as session:
        session.replace(target, captured.values[0], direction="fwd_pre")
        logits: Tensor = model(ids).logits
    return logits
