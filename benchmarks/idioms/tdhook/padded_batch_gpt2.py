"""Record a residual stream of a padded batch, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Targets and capture
results"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    target = Target(f"transformer.h.{layer}", "activation", -1, tuple(range(model.config.hidden_size)))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), HookSession(model) as session:
        captured = session.capture(target)
        model(ids, attention_mask=mask, position_ids=positions)
    return captured.values[0]
