"""Between PyTorch and penzai; it counts as set-up of each program that imports it.

penzai's own `llama_from_huggingface_model` refuses every config of transformers 5 ("does not support these
configuration attributes"). This gives the converter below it what it reads.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from penzai import pz
from penzai.models.transformer.variants.llamalike_common import llamalike_from_huggingface_model
from torch import Tensor


def convert(model: Any) -> Any:
    """A penzai TransformerLM with a copy of the weights."""
    config = copy.deepcopy(model.config)
    config.rope_theta = config.rope_parameters["rope_theta"]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return llamalike_from_huggingface_model(
        SimpleNamespace(config=config, dtype=model.dtype, state_dict=lambda: weights)
    )


def named(ids: Tensor) -> Any:
    """Token ids with named axes."""
    return pz.nx.wrap(jnp.asarray(ids.numpy())).tag("batch", "seq")


def tensor(array: Any, *axes: str) -> Tensor:
    """A named array as a tensor, its axes in this order."""
    return torch.from_numpy(np.array(array.unwrap(*axes)))
