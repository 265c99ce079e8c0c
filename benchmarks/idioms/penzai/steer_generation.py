"""Steer a generation, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, api/penzai.models.transformer.simple_decoding_loop.html and
notebooks/selectors.html
Serves: llama
Note: Its loop samples; a temperature near 0 takes the likeliest token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from penzai import pz
from penzai.models.transformer import model_parts
from penzai.models.transformer.sampling_mode import KVCachingTransformerLM
from penzai.models.transformer.simple_decoding_loop import temperature_sample_pyloop
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, layer: int, vector: Tensor, new_tokens: int) -> Any:
    lm = convert(model)

    # --- operation
    @pz.pytree_dataclass
    class Steer(pz.nn.Layer):  # type: ignore[misc]
        value: Any

        def __call__(self, stream: Any, **side_inputs: Any) -> Any:
            return stream + self.value

    block = pz.select(lm).at_instances_of(model_parts.TransformerBlock).pick_nth_selected(layer)
    steered = block.insert_after(Steer(pz.nx.wrap(jnp.asarray(vector.numpy())).tag("embedding")))
    sampler = KVCachingTransformerLM.from_uncached(steered, ids.shape[1] + new_tokens, {"batch": len(ids)})
    tokens = temperature_sample_pyloop(sampler, named(ids), jax.random.key(0), 1e-6, new_tokens)
    return torch.cat([ids, tensor(tokens, "batch", "seq")], dim=1)
