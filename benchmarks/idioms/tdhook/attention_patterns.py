"""Record the attention of every block, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Targets and capture
results" and "Forward input operations" (output_path)
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    model.set_attn_implementation("eager")
    # --- operation
    heads = tuple(range(model.config.num_attention_heads))
    targets = [
        Target(f"model.layers.{layer}.self_attn", "activation", 1, heads, output_path=(1,))
        for layer in range(model.config.num_hidden_layers)
    ]
    with torch.no_grad(), HookSession(model) as session:
        captured = [session.capture(target) for target in targets]
        model(ids)
    return torch.stack([each.values[0] for each in captured])
