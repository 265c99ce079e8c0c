"""Record a residual stream and run no further, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html
Serves: llama
Note: The blocks behind are cut off; the work of JAX is not counted here.
"""

from __future__ import annotations

from typing import Any

from penzai import pz
from penzai.models.transformer import model_parts
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    lm = convert(model)
    # --- operation
    blocks = pz.select(lm).at_instances_of(model_parts.TransformerBlock)
    last = blocks.get_sequence()[layer]
    end = next(i for i, each in enumerate(lm.body.sublayers) if each is last) + 1
    residual = pz.nn.Sequential(lm.body.sublayers[:end])(named(ids), token_positions=pz.nx.arange("seq", ids.shape[1]))
    return tensor(residual, "batch", "seq", "embedding")
