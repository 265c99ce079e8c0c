"""Patch what one head gives, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Interventions", and docs/intervention_api.md
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    # --- operation
    attention = tl.in_module(f"model.layers.{layer}.self_attn") & tl.func("scaled_dot_product_attention")
    log = tl.trace(model, source, {"use_cache": False}, save=attention)
    (site,) = log.find_sites(attention)

    def patch(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, head] = site.out[:, head]
        return act

    log = tl.trace(model, ids, {"use_cache": False}, intervene=tl.when(attention, patch))
    return log[log.output_layers[0]].out
