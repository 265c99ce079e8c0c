"""Record what each head gives, with tdhook.

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


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    units = tuple(range(model.config.hidden_size))
    targets = [
        Target(f"model.layers.{layer}.self_attn.o_proj", "activation", -1, units, output_path=(0,))
        for layer in range(model.config.num_hidden_layers)
    ]
    with torch.no_grad(), HookSession(model) as session:
        captured = [session.capture(target, direction="fwd_pre") for target in targets]
        model(ids)
    heads = torch.stack([each.values[0] for each in captured])
    return heads.view(len(heads), *ids.shape, model.config.num_attention_heads, -1)
