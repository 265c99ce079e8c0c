"""Record the residual stream behind every block, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Activation Collection with Intervention"
Serves: llama, gpt2
Note: With the intervention's class, as there, rather than an instance, several positions end in an error or in the
features of the first alone.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    sites = [
        {"layer": layer, "component": "block_output", "intervention": pv.CollectIntervention()}
        for layer in range(model.config.num_hidden_layers)
    ]
    (_, residuals), _ = pv.IntervenableModel(sites, model=model)({"input_ids": ids})
    return torch.stack(residuals)
