"""Patch the residual stream at one position, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html and
notebooks/selectors.html
Serves: llama
"""

from __future__ import annotations

from typing import Any

from penzai import pz
from penzai.models.transformer import model_parts
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Patch(pz.nn.Layer):  # type: ignore[misc]
        value: Any

        def __call__(self, stream: Any, **side_inputs: Any) -> Any:
            return stream.at[{"seq": position}].set(self.value)

    block = pz.select(lm).at_instances_of(model_parts.TransformerBlock).pick_nth_selected(layer)
    saving = block.insert_after(SaveIntermediate())
    saving(named(source))
    (saved,) = pz.unbind_state_vars(saving)[1]
    logits = block.insert_after(Patch(saved.value[{"seq": position}]))(named(ids))
    return tensor(logits, "batch", "seq", "vocabulary")
