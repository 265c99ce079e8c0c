"""Record two kinds of training steps, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, notebooks/how_to_think_in_penzai.html; pz.unbind_params
Serves: llama
Note: It has no recorder: the figures, the kinds and the loop are the user's, and so are the loss and the update, in
JAX.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from penzai import pz
from penzai.models.transformer import model_parts
from torch import Tensor

from .converted import convert, named


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Watch(pz.nn.Layer):  # type: ignore[misc]
        value: Any
        saved: Any

        def __call__(self, stream: Any, **side_inputs: Any) -> Any:
            self.saved.value = stream
            return stream + self.value

    model_without, weights = pz.unbind_params(lm, freeze=True)
    blocks = pz.select(model_without).at_instances_of(model_parts.TransformerBlock)

    def loss(weights: Any, change: Any, ids: Any) -> Any:
        saved: Any = pz.StateVariable(None)
        watched = blocks.pick_nth_selected(layer).insert_after(Watch(change, saved))
        logits = pz.bind_variables(watched, weights)(ids).unwrap("batch", "seq", "vocabulary")[:, :-1]
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), ids.unwrap("batch", "seq")[:, 1:, None], -1)
        return -right.mean(), saved.value.unwrap("batch", "seq", "embedding").mean()

    rows: dict[str, list[Any]] = {}
    for kind, ids in batches:
        change = pz.nx.zeros({"batch": len(ids), "seq": ids.shape[1], "embedding": model.config.hidden_size})
        (slopes, gradient), mean = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, change, named(ids))
        weights = jax.tree.map(lambda weight, slope: weight - learning_rate * slope, weights, slopes)
        rows.setdefault(kind, []).append([float(mean), float(abs(gradient.unwrap("batch", "seq", "embedding")).max())])
    return torch.tensor([torch.tensor(rows[kind]).mean(0).tolist() for kind in sorted(rows)])
