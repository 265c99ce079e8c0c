"""comgra 0.11.5: a parameter without a gradient is recorded with the gradient 0.

Claim: `.grad` that is None, of a module that the loss does not depend on, is stored as 0.0 and cannot be told from a
gradient that vanished.
Documentation followed: the README's minimal example.
Right: a missing value. Through crosslens there is no row.
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


def main() -> dict[str, Any]:
    """Record a step in which one of two layers is not used; `holds` where its gradient is 0."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
        model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
        recorder.track_module("net", model)
        recorder.start_batch(0, 5)
        recorder.start_iteration()
        loss = model["used"](torch.randn(5, 4)).square().mean()
        recorder.register_tensor("loss", loss, is_loss=True)
        loss.backward()
        recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
        values = [
            value
            for key, value in _recorded(root).items()
            if key[1] == "gradients" and key[5] == "net.unused.weight" and key[7] == "abs_mean" and key[3] == -1
        ]
    gradient = model["unused"].weight.grad
    return {
        "claim": "a parameter that has no gradient is recorded with a gradient of 0",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"abs_mean of the gradient": values[0] if values else None},
        "expected": {"abs_mean of the gradient": gradient},
        "holds": gradient is None and values == [0.0],
    }


def _recorded(root: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for path in Path(root, "group/trials/trial/recordings/0__main_execution_type").iterdir():
        content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
        for key, held in PseudoDb([]).deserialize(content).record_set.items():
            found[key] = held.get("val")
    return found


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
