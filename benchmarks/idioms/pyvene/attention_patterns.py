"""Record the attention of every block, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Get Attention Weights"
Serves: llama, gpt2
Raises (llama): It has no component for the attention of this family.
Raises (gpt2): The component stands for a module that GPT-2 no longer calls: it collects nothing.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    model.set_attn_implementation("eager")
    # --- operation
    heads = list(range(model.config.num_attention_heads))
    sites = [
        {"layer": layer, "component": "attention_weight", "intervention_type": pv.CollectIntervention}
        for layer in range(model.config.num_hidden_layers)
    ]
    intervenable = pv.IntervenableModel(sites, model=model)
    (_, patterns), _ = intervenable({"input_ids": ids}, unit_locations={"base": [[heads]] * len(sites)})
    return torch.stack(patterns)
