"""Differentiate a logit difference at a residual stream, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Gradient operations"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    target = Target(f"transformer.h.{layer}", "gradient", -1, tuple(range(model.config.hidden_size)))
    with HookSession(model) as session:
        captured = session.capture(target)
        logits = model(ids).logits[0, -1]
        (logits[token] - logits[other]).backward()
    return captured.values[0]
