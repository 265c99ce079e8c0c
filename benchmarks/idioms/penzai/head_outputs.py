"""Record what each head gives, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/induction_heads.html
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from penzai import pz
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor) -> Any:
    lm = convert(model)

    # --- operation
    def saving(layer: int, attention: Any) -> Any:
        projection = pz.select(attention).at(lambda layer: layer.attn_value_to_output).at_instances_of(pz.nn.Linear)
        return projection.insert_before(SaveIntermediate(pz.StateVariable(None, label=layer)))

    lm = pz.select(lm).at_instances_of(pz.nn.Attention).apply_with_selected_index(saving)
    lm(named(ids))
    axes = ("batch", "seq", "head_groups", "query_heads", "projection")
    return torch.stack([tensor(each.value, *axes).flatten(2, 3) for each in pz.unbind_state_vars(lm)[1]])
