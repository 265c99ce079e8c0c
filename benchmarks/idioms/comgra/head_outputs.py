"""Record what each head gives, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama
Note: Tensors inside a model of others are registered from plain forward hooks.
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
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    for layer, block in enumerate(model.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args, layer=layer: recorder.register_tensor(f"block{layer}", args[0])
        )
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    recorder.register_tensor("logits", model(ids).logits.sum(), is_loss=True)
    recorder.finish_iteration()
    recorder.finish_batch()
    heads = torch.stack([neurons(folder, f"block{layer}") for layer in range(len(model.model.layers))])
    return heads.view(len(heads), *ids.shape, model.config.num_attention_heads, -1)
