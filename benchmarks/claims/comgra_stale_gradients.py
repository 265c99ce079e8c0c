"""comgra 0.11.5: the README's minimal example records wrong gradients of its inputs.

Claim: `register_tensor` makes `inputs` a leaf that requires a gradient; `optimizer.zero_grad()` knows only parameters,
so `inputs.grad` adds up over all epochs, and each recording holds the sum.
Documentation followed: the README's minimal example, unchanged but for the folder and a seed.
Right: the gradient of this epoch's loss alone, by `torch.autograd.grad` in the same epoch, before the update.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgpack
import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from comgra.utilities import PseudoDb
from torch import nn

KEY = ("gradients", "batch_mean", "node__inputs", "abs_mean")


def main() -> dict[str, Any]:
    """Train as the README does; `holds` where what is recorded at epoch 90 is not that epoch's gradient."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(10))
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        criterion, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01)
        recorder.track_module("main_model", model)
        inputs = torch.randn(100, 5)
        targets = 2 * inputs + torch.randn(100, 5) * 0.1
        right = 0.0
        for epoch in range(100):
            recorder.start_batch(epoch, inputs.shape[0])
            recorder.start_iteration()
            recorder.register_tensor("inputs", inputs, is_input=True)
            outputs = model(inputs)
            recorder.register_tensor("outputs", outputs)
            recorder.register_tensor("targets", targets, is_target=True)
            loss = criterion(outputs, targets)
            recorder.register_tensor("loss", loss, is_loss=True)
            if epoch == 90:
                right = torch.autograd.grad(loss, inputs, retain_graph=True)[0].abs().mean().item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record_current_gradients("gradients")
            recorder.finish_iteration()
            recorder.finish_batch()
        found: dict[Any, float] = {}
        for path in Path(root, "group/trials/trial/recordings/90__main_execution_type").iterdir():
            content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
            for key, held in PseudoDb([]).deserialize(content).record_set.items():
                found[key[1], key[2], key[4], key[7]] = held.get("val")
    return {
        "claim": "the README's minimal example records gradients of its inputs that add up over epochs",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"abs_mean of the inputs' gradient, epoch 90": found[KEY]},
        "expected": {"abs_mean of the inputs' gradient, epoch 90": right},
        "holds": abs(found[KEY] - right) > 0.01 * right,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
