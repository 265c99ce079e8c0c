"""Patch the residual stream at one position, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Interventions", and docs/intervention_api.md
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    path = f"transformer.h.{layer}"
    value = tl.trace(model, source, {"use_cache": False}, save=tl.module(path))[path].out

    def patch(act: Tensor, *, hook: Any) -> Tensor:
        act = act.clone()
        act[:, position] = value[:, position]
        return act

    log = tl.trace(model, ids, {"use_cache": False}, intervene=tl.when(tl.module(path), patch))
    return log[log.output_layers[0]].out
