"""Patch what one head gives, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Interchange Interventions"; tutorial
"IOI_Replication", for the component
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    # --- operation
    site = {"layer": layer, "component": "head_attention_value_output", "unit": "h"}
    intervenable = pv.IntervenableModel(site, model=model)
    _, output = intervenable({"input_ids": ids}, [{"input_ids": source}], {"sources->base": head})
    return output.logits
