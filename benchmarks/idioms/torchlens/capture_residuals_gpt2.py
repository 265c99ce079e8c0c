"""Record the residual stream behind every block, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Quickstart"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    log = tl.trace(model, ids, {"use_cache": False})
    paths = [f"transformer.h.{layer}" for layer in range(model.config.num_hidden_layers)]
    return torch.stack([log[path].out for path in paths])
