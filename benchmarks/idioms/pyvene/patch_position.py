"""Patch the residual stream at one position, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "Interchange Interventions"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    intervenable = pv.IntervenableModel({"layer": layer, "component": "block_output"}, model=model)
    _, output = intervenable({"input_ids": ids}, [{"input_ids": source}], {"sources->base": position})
    return output.logits
