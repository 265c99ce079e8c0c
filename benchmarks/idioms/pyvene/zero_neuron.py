"""Zero one neuron, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Set Activations to Zeros" and "Set
Activations to Zeros with Subspaces"
Serves: llama, gpt2
Note (llama): The component is what the activation function returns; with its unit at zero the neuron, its product
with the other projection, is zero too.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    site = {"layer": layer, "component": "mlp_activation", "intervention": pv.ZeroIntervention()}
    _, output = pv.IntervenableModel(site, model=model)({"input_ids": ids}, subspaces=[neuron])
    return output.logits
