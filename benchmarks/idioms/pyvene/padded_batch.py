"""Record a residual stream of a padded batch, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Activation Collection with Intervention"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    site = {"layer": layer, "component": "block_output", "intervention": pv.CollectIntervention()}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    base = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    (_, (residual,)), _ = pv.IntervenableModel(site, model=model)(base)
    return residual
