"""comgra 0.11.5: after an in-place operation it records the gradient of another tensor than the one registered.

Claim: `register_tensor` calls `retain_grad`; PyTorch carries that over to what the tensor becomes, so what is recorded
at a pre-activation, before `ReLU(inplace=True)`, is the gradient behind the ReLU. Its values are of two tensors: the
key figures of the pre-activation stand beside neurons that are read when the batch is finished.
Documentation followed: the README (`register_tensor` "should be called on a tensor before that tensor is used").
Right: the gradient of a copy of the pre-activation, by `torch.autograd.grad` through a ReLU that is not in place.
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
    """One step; `holds` where the recorded gradient, or a recorded neuron, is not the registered tensor's."""
    torch.manual_seed(0)
    linear, relu, weight = nn.Linear(5, 4), nn.ReLU(inplace=True), torch.arange(1.0, 5)
    inputs = torch.randn(8, 5)
    pre = linear(inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((pre.relu() * weight).sum(), pre)
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
        recorder.track_module("linear", linear)
        recorder.start_batch(0, len(inputs))
        recorder.start_iteration()
        hidden = linear(inputs)
        recorder.register_tensor("pre", hidden)
        loss = (relu(hidden) * weight).sum()
        recorder.register_tensor("loss", loss, is_loss=True)
        loss.backward()
        recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
        found: dict[Any, Any] = {}
        for path in Path(root, "group/trials/trial/recordings/0__main_execution_type").iterdir():
            content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
            for key, held in PseudoDb([]).deserialize(content).record_set.items():
                if key[4] == "node__pre":
                    found[key[1], key[2], key[7], key[8]] = held.get("val")
    neurons = [found["forward", f"Sample {row}", "neuron", str(unit)] for row in range(8) for unit in range(4)]
    observed = found["gradients", "batch_mean", "mean", None]
    return {
        "claim": "in-place work after a tensor was registered changes its recorded gradient and neurons",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"mean gradient": observed, "least neuron": min(neurons)},
        "expected": {"mean gradient": gradient.mean().item(), "least neuron": pre.min().item()},
        "holds": abs(observed - gradient.mean().item()) > 1e-3 and min(neurons) - pre.min().item() > 1e-3,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
