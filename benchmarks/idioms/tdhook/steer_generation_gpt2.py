"""Steer a generation, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Live
capture-to-replacement routing"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    # --- operation
    target = Target(f"transformer.h.{layer}", "activation", -1, tuple(range(model.config.hidden_size)))
    with HookSession(model) as session:
        session.replace(target, session.capture(target), transform=lambda value: value + vector)
        tokens: Tensor = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
    return tokens
