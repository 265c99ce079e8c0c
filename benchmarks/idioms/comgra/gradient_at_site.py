"""Differentiate a logit difference at a residual stream, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama
Note: Tensors inside a model of others are registered from plain forward hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, ids: Tensor, layer: int, token: int, other: int, folder: Path) -> Any:
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    block = model.model.layers[layer]
    block.register_forward_hook(lambda module, args, output: recorder.register_tensor("stream", output))
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    logits = model(ids).logits[0, -1]
    difference = logits[token] - logits[other]
    recorder.register_tensor("difference", difference, is_loss=True)
    difference.backward()
    recorder.record_current_gradients("gradients")
    recorder.finish_iteration()
    recorder.finish_batch()
    return neurons(folder, "stream", "gradients")
