"""Record a residual stream and run no further, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Managed early
stopping"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    # --- operation
    with torch.no_grad(), HookSession(model) as session:
        stopped = session.stop(f"transformer.h.{layer}")
        model(ids)
    return stopped.output
