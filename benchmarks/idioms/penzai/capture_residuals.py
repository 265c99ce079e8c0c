"""Record the residual stream behind every block, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html and
notebooks/selectors.html
Serves: llama
Note: insert_after(SaveIntermediate()) at all blocks would keep the last one's value alone.
"""

from __future__ import annotations

from typing import Any

import torch
from penzai import pz
from penzai.models.transformer import model_parts
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor) -> Any:
    lm = convert(model)

    # --- operation
    def saving(layer: int, block: Any) -> Any:
        return pz.nn.Sequential([block, SaveIntermediate(pz.StateVariable(None, label=layer))])

    lm = pz.select(lm).at_instances_of(model_parts.TransformerBlock).apply_with_selected_index(saving)
    lm(named(ids))
    saved = pz.unbind_state_vars(lm)[1]
    return torch.stack([tensor(each.value, "batch", "seq", "embedding") for each in saved])
