"""Embedding times gradient, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama, gpt2
Note: Tensors inside a model of others are registered from plain forward hooks. It has no method of attribution; the
product is taken by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import Tensor

from .reading import neurons


def run(model: Any, ids: Tensor, token: int, folder: Path) -> Any:
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, output: recorder.register_tensor("embeds", output))
    recorder.start_batch(0, len(ids))
    recorder.start_iteration()
    logit = model(ids).logits[0, -1, token]
    recorder.register_tensor("logit", logit, is_loss=True)
    logit.backward()
    recorder.record_current_gradients("gradients")
    recorder.finish_iteration()
    recorder.finish_batch()
    return (neurons(folder, "embeds") * neurons(folder, "embeds", "gradients")).sum(-1)[0]
