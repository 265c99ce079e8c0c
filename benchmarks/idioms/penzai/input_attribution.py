"""Embedding times gradient, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/selectors.html
Serves: llama
Note: It has no method of attribution; the gradient is that of a one that is multiplied with.
"""

from __future__ import annotations

from typing import Any

import jax
from penzai import pz
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Scale(pz.nn.Layer):  # type: ignore[misc]
        value: Any

        def __call__(self, embeds: Any, **side_inputs: Any) -> Any:
            return embeds * self.value

    embedding = pz.select(lm).at_instances_of(pz.nn.EmbeddingLookup)

    def logit(scale: Any) -> Any:
        logits = embedding.insert_after(Scale(scale))(named(ids))
        return logits[{"batch": 0, "seq": -1, "vocabulary": token}].unwrap()

    scale = pz.nx.ones({"seq": ids.shape[1], "embedding": model.config.hidden_size})
    return tensor(jax.grad(logit)(scale), "seq", "embedding").sum(-1)
