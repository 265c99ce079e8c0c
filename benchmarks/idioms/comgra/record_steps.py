"""Record two kinds of training steps, with comgra.

Documentation: https://github.com/FlorianDietz/comgra, README, "Usage"
Serves: llama
Note: A tensor inside a model of others is registered from a plain forward hook. comgra shows figures in its own
pages; there is no reader, and its files are read with its own functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from comgra.utilities import PseudoDb
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float, folder: Path) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    recorder = ComgraRecorder(folder, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
    recorder.track_module("model", model)
    # --- operation
    block = model.model.layers[layer]
    block.register_forward_hook(lambda module, args, output: recorder.register_tensor("stream", output))
    for step, (kind, ids) in enumerate(batches):
        recorder.start_batch(step, len(ids), type_of_execution=kind)
        recorder.start_iteration()
        loss = model(ids, labels=ids).loss
        recorder.register_tensor("loss", loss, is_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
    recorder.finalize()
    wanted = [("forward", "batch_mean", "mean"), ("gradients", "batch_abs_max", "abs_max")]
    rows: dict[str, dict[Any, list[float]]] = {}
    for path in Path(folder).glob("group/trials/trial/recordings/*/*"):
        kind = path.parent.name.partition("__")[2]
        content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
        for key, held in PseudoDb([]).deserialize(content).record_set.items():
            if key[4] == "node__stream" and (key[1], key[2], key[7]) in wanted:
                rows.setdefault(kind, {}).setdefault((key[1], key[2], key[7]), []).append(held["val"])
    return torch.tensor([[sum(rows[kind][w]) / len(rows[kind][w]) for w in wanted] for kind in sorted(rows)])
