"""comgra 0.11.5: tracking a model unfreezes its frozen parameters, and the caller's optimizer then trains them.

Claim: `start_batch` registers every parameter of a tracked module and sets `requires_grad` on those that have it off.
Documentation followed: the README's minimal example (`track_module("main_model", model)`, an optimizer of
`model.parameters()`); the first layer is frozen, as in fine-tuning.
Right: a frozen layer is bit by bit what it was. Through crosslens it is: comgra gets copies.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from typing import Any

import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import nn


def main() -> dict[str, Any]:
    """Train ten steps; `holds` where the frozen layer moved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    model[0].requires_grad_(False)
    before = model.get_parameter("0.weight").detach().clone()
    criterion, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(100, 5)
    targets = 2 * inputs + torch.randn(100, 5) * 0.1
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(10))
        recorder.track_module("main_model", model)
        for epoch in range(10):
            recorder.start_batch(epoch, inputs.shape[0])
            recorder.start_iteration()
            outputs = model(inputs)
            recorder.register_tensor("outputs", outputs)
            loss = criterion(outputs, targets)
            recorder.register_tensor("loss", loss, is_loss=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record_current_gradients("gradients")
            recorder.finish_iteration()
            recorder.finish_batch()
    frozen = model.get_parameter("0.weight")
    moved = (frozen.detach() - before).abs().max().item()
    return {
        "claim": "tracking a model unfreezes its frozen parameters, and they are trained",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"requires_grad": frozen.requires_grad, "largest change of a frozen weight": moved},
        "expected": {"requires_grad": False, "largest change of a frozen weight": 0.0},
        "holds": frozen.requires_grad and moved > 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
