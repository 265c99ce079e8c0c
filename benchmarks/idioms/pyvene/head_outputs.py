"""Record what each head gives, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Activation Collection with Intervention"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    sites = [
        {"layer": layer, "component": "attention_value_output", "intervention": pv.CollectIntervention()}
        for layer in range(model.config.num_hidden_layers)
    ]
    (_, heads), _ = pv.IntervenableModel(sites, model=model)({"input_ids": ids})
    return torch.stack(heads).view(len(heads), *ids.shape, model.config.num_attention_heads, -1)
