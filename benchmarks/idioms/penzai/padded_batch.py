"""Record a residual stream of a padded batch, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/selectors.html; TransformerLM, argument
token_positions
Serves: llama
"""

from __future__ import annotations

from typing import Any

import torch
from penzai import pz
from penzai.models.transformer import model_parts
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    lm = convert(model)
    # --- operation
    positions = torch.where(mask.bool(), mask.cumsum(-1) - 1, -1)
    block = pz.select(lm).at_instances_of(model_parts.TransformerBlock).pick_nth_selected(layer)
    saving = block.insert_after(SaveIntermediate())
    saving(named(ids), token_positions=named(positions))
    (saved,) = pz.unbind_state_vars(saving)[1]
    return tensor(saved.value, "batch", "seq", "embedding")
