"""Record the hidden layer of a network of one's own, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Targets and capture
results"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    # --- operation
    with torch.no_grad(), HookSession(model) as session:
        captured = session.capture(Target("hidden", "activation", -1, tuple(range(model.hidden.out_features))))
        model(images)
    return captured.values[0]
