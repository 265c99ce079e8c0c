"""Zero one neuron, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Interventions", and docs/intervention_api.md
Serves: gpt2
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

    neurons = tl.module(f"transformer.h.{layer}.mlp.act")
    log = tl.trace(model, ids, {"use_cache": False}, intervene=tl.when(neurons, ablate))
    return log[log.output_layers[0]].out
