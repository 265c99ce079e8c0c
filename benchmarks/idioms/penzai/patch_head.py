"""Patch what one head gives, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/induction_heads.html and notebooks/selectors.html
Serves: llama
"""

from __future__ import annotations

from typing import Any

from penzai import pz
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, head: int) -> Any:
    lm = convert(model)

    # --- operation
    group, query = divmod(head, model.config.num_attention_heads // model.config.num_key_value_heads)

    @pz.pytree_dataclass
    class Patch(pz.nn.Layer):  # type: ignore[misc]
        value: Any

        def __call__(self, heads: Any, **side_inputs: Any) -> Any:
            return heads.at[{"head_groups": group, "query_heads": query}].set(self.value)

    attention = pz.select(lm).at_instances_of(pz.nn.Attention).pick_nth_selected(layer)
    projection = attention.at(lambda layer: layer.attn_value_to_output).at_instances_of(pz.nn.Linear)
    saving = projection.insert_before(SaveIntermediate())
    saving(named(source))
    (saved,) = pz.unbind_state_vars(saving)[1]
    value = saved.value[{"head_groups": group, "query_heads": query}]
    logits = projection.insert_before(Patch(value))(named(ids))
    return tensor(logits, "batch", "seq", "vocabulary")
