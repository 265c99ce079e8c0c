"""Record a residual stream of a padded batch, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: gpt2
Note: Tensors inside a model of others are registered from plain forward hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, ids: Tensor, mask: Tensor, layer: int, folder: Path) -> Any:
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    block = model.transformer.h[layer]
    block.register_forward_hook(lambda module, args, output: recorder.register_tensor("stream", output))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    recorder.register_tensor("logits", logits.sum(), is_loss=True)
    recorder.finish_iteration()
    recorder.finish_batch()
    return neurons(folder, "stream")
