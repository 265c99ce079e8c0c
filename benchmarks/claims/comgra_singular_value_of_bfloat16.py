"""comgra 0.11.5: the largest singular value of a bfloat16 parameter is recorded as NaN.

Claim: PyTorch has no singular values in bfloat16; the error is caught and NaN is stored.
Documentation followed: the README's minimal example.
Right: in float32. Through crosslens it is taken in float32.
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
    """Record a bfloat16 layer; `holds` where the value is NaN."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
        model = nn.Linear(4, 3).bfloat16()
        recorder.track_module("net", model)
        recorder.start_batch(0, 5)
        recorder.start_iteration()
        loss = model(torch.randn(5, 4).bfloat16()).square().mean()
        recorder.register_tensor("loss", loss, is_loss=True)
        loss.backward()
        recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
        values = [
            value
            for key, value in _recorded(root).items()
            if key[1] == "forward" and key[5] == "net.weight" and key[7] == "svd" and key[3] == -1
        ]
    want = float(torch.linalg.svdvals(model.weight.detach().float())[0])
    return {
        "claim": "the largest singular value of a bfloat16 parameter is NaN",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"largest singular value": values[0]},
        "expected": {"largest singular value": want},
        "holds": len(values) == 1 and values[0] != values[0],
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
