"""Zero one neuron, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html and
notebooks/selectors.html
Serves: llama
"""

from __future__ import annotations

from typing import Any

from penzai import pz
from penzai.models.transformer import model_parts
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Ablate(pz.nn.Layer):  # type: ignore[misc]
        def __call__(self, neurons: Any, **side_inputs: Any) -> Any:
            return neurons.at[{"neurons": neuron}].set(0.0)

    mlp = pz.select(lm).at_instances_of(model_parts.TransformerFeedForward).pick_nth_selected(layer)
    logits = mlp.at(lambda mlp: mlp.sublayers[1]).insert_before(Ablate())(named(ids))
    return tensor(logits, "batch", "seq", "vocabulary")
