"""Zero one neuron, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Interventions", and docs/intervention_api.md
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    def ablate(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[..., neuron] = 0
        return act

    neurons = tl.in_module(f"model.layers.{layer}.mlp") & tl.func("mul")
    log = tl.trace(model, ids, {"use_cache": False}, intervene=tl.when(neurons, ablate))
    return log[log.output_layers[0]].out
