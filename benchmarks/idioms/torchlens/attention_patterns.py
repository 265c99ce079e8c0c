"""Record the attention of every block, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, docs/facets.md
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    model.set_attn_implementation("eager")
    # --- operation
    log = tl.trace(model, ids, {"use_cache": False})
    paths = [f"model.layers.{layer}.self_attn" for layer in range(model.config.num_hidden_layers)]
    return torch.stack([log.modules[path].facets["pattern"].value for path in paths])
