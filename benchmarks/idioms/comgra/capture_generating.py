"""Record a residual stream while tokens are generated, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama
Note: Tensors inside a model of others are registered from plain forward hooks. model.generate runs without
gradients, which comgra refuses; the loop is written out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, ids: Tensor, layer: int, new_tokens: int, folder: Path) -> Any:
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    block = model.model.layers[layer]
    block.register_forward_hook(lambda module, args, output: recorder.register_tensor("stream", output))
    recorder.start_batch(0, len(ids))
    for _ in range(new_tokens):
        recorder.start_iteration()
        logits = model(ids).logits
        recorder.register_tensor("logits", logits.sum(), is_loss=True)
        recorder.finish_iteration()
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    recorder.finish_batch()
    return neurons(folder, "stream")
