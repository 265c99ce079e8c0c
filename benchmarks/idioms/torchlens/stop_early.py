"""Record a residual stream and run no further, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Flexible feature extraction"
Serves: llama
Note: halt=tl.module(...) of the block itself would run to the end without a word.
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    # --- operation
    save, halt = tl.module(f"model.layers.{layer}"), tl.in_module(f"model.layers.{layer + 1}")
    recorded = tl.record(model, ids, {"use_cache": False}, save=save, halt=halt)
    return next(iter(recorded)).ram_payload
