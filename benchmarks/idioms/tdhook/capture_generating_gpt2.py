"""Record a residual stream while tokens are generated, with tdhook.

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


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    target = Target(f"transformer.h.{layer}", "activation", -1, tuple(range(model.config.hidden_size)))
    with HookSession(model) as session:
        captured = session.capture(target)
        model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    return torch.cat(captured.values, dim=1)
