"""Differentiate a logit difference at a residual stream, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html and
notebooks/jitting_and_sharding.html
Serves: llama
Note: The gradient is that of a zero that is added.
"""

from __future__ import annotations

from typing import Any

import jax
from penzai import pz
from penzai.models.transformer import model_parts
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Add(pz.nn.Layer):  # type: ignore[misc]
        value: Any

        def __call__(self, stream: Any, **side_inputs: Any) -> Any:
            return stream + self.value

    block = pz.select(lm).at_instances_of(model_parts.TransformerBlock).pick_nth_selected(layer)

    def difference(change: Any) -> Any:
        last = block.insert_after(Add(change))(named(ids))[{"batch": 0, "seq": -1}]
        return last[{"vocabulary": token}].unwrap() - last[{"vocabulary": other}].unwrap()

    change = pz.nx.zeros({"batch": len(ids), "seq": ids.shape[1], "embedding": model.config.hidden_size})
    return tensor(jax.grad(difference)(change), "batch", "seq", "embedding")
