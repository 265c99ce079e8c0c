"""Record a residual stream while tokens are generated, with penzai.

Documentation: https://penzai.readthedocs.io/en/stable/, api/penzai.models.transformer.sampling_mode.html and
notebooks/selectors.html
Serves: llama
Note: A variable keeps the last call's value, so that the loop of simple_decoding_loop is written out.
"""

from __future__ import annotations

from typing import Any

import torch
from penzai import pz
from penzai.models.transformer import model_parts
from penzai.models.transformer.sampling_mode import KVCachingTransformerLM
from penzai.toolshed.save_intermediates import SaveIntermediate
from torch import Tensor

from .converted import convert, named, tensor


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    lm = convert(model)
    # --- operation
    block = pz.select(lm).at_instances_of(model_parts.TransformerBlock).pick_nth_selected(layer)
    saved: Any = pz.StateVariable(None, label="saved")
    saving = block.insert_after(SaveIntermediate(saved))
    sampler = KVCachingTransformerLM.from_uncached(saving, ids.shape[1] + new_tokens, {"batch": len(ids)})
    kept: list[Tensor] = []
    for _ in range(new_tokens):
        logits = tensor(sampler(named(ids)), "batch", "seq", "vocabulary")
        kept.append(tensor(saved.value, "batch", "seq", "embedding"))
        ids = logits[:, -1:].argmax(-1).int()
    return torch.cat(kept, dim=1)
