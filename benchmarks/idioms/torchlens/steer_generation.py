"""Steer a generation, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Interventions"
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    # --- operation
    steer = tl.when(tl.module(f"owner.model.layers.{layer}"), tl.steer(vector, 1.0, feature_axis=-1))
    log = tl.trace(model.generate, ids, {"max_new_tokens": new_tokens, "do_sample": False}, intervene=steer)
    return log[log.output_layers[0]].out
