"""Record a residual stream while tokens are generated, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Quickstart"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    log = tl.trace(model.generate, ids, {"max_new_tokens": new_tokens, "do_sample": False})
    return torch.cat([log[f"owner.transformer.h.{layer}:{step}"].out for step in range(1, new_tokens + 1)], dim=1)
