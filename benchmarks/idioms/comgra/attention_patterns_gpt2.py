"""Record the attention of every block, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: gpt2
Note: Tensors inside a model of others are registered from plain forward hooks. A tensor of four axes ends in a
RecursionError, so that two are joined.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, ids: Tensor, folder: Path) -> Any:
    model.set_attn_implementation("eager")
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    for layer, block in enumerate(model.transformer.h):
        block.attn.register_forward_hook(
            lambda module, args, output, layer=layer: recorder.register_tensor(f"block{layer}", output[1].flatten(1, 2))
        )
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    recorder.register_tensor("logits", model(ids).logits.sum(), is_loss=True)
    recorder.finish_iteration()
    recorder.finish_batch()
    patterns = torch.stack([neurons(folder, f"block{layer}") for layer in range(len(model.transformer.h))])
    return patterns.view(len(patterns), len(ids), model.config.num_attention_heads, -1, ids.shape[1])
