"""Steer a generation, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "LMs Generation"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    # --- operation
    steering = pv.AdditionIntervention(source_representation=vector)
    intervenable = pv.IntervenableModel(
        {"layer": layer, "component": "block_output", "intervention": steering}, model=model
    )
    _, tokens = intervenable.generate(
        {"input_ids": ids}, unit_locations=None, intervene_on_prompt=True, max_new_tokens=new_tokens, do_sample=False
    )
    return tokens
