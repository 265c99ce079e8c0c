"""Record the hidden layer of a network of one's own, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama, gpt2
Note: Registered from a plain forward hook; in one's own forward it would be a line there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, images: Tensor, folder: Path) -> Any:
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    model.hidden.register_forward_hook(lambda module, args, output: recorder.register_tensor("hidden", output))
    recorder.start_batch(0, len(images))
    recorder.start_iteration()
    recorder.register_tensor("outputs", model(images).sum(), is_loss=True)
    recorder.finish_iteration()
    recorder.finish_batch()
    return neurons(folder, "hidden")
