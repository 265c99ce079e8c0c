"""Record a residual stream of a padded batch, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Quickstart"
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    options = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    return tl.trace(model, ids, options)[f"transformer.h.{layer}"].out
