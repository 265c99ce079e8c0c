"""Mistakes with comgra: `ComgraRecorder`, as its README teaches. It records training steps and changes nothing.

What was meant is the key figure of the tensor that was registered, computed by hand.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .scene import Net, Scene

DISTRIBUTION = "comgra"
IMPORTS = ("comgra.recorder",)
ABSENT = {"": "comgra records training steps of one's own loop; it neither edits nor runs the model"}
IMPOSSIBLE = {"unsupported_module": "any module can be tracked, and any tensor registered"}
NOTES = {"frozen_parameters": "the share of parameters that tracking unfreezes"}


def _recorded(net: Net, x: Tensor, *, in_place: bool = False, save: bool = True, **options: Any) -> Any:
    """The recorder's files after one step, as (pass, aggregate, figure, unit) -> value at the tensor `hidden`."""
    import msgpack
    from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
    from comgra.recorder import ComgraRecorder
    from comgra.utilities import PseudoDb

    found: dict[Any, float] = {}
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
        recorder.track_module("net", net)
        recorder.start_batch(0, len(x))
        recorder.start_iteration()
        hidden = net.second(torch.relu(net.first(x)))
        recorder.register_tensor("hidden", hidden, **options)
        loss = net.last(hidden.relu_() if in_place else hidden.relu()).sum()
        recorder.register_tensor("loss", loss, is_loss=True)
        loss.backward()
        if save:
            recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
        for path in Path(root, "group/trials/trial/recordings/0__main_execution_type").iterdir():
            content = msgpack.loads(path.read_bytes(), strict_map_key=False)["recordings"]
            for key, held in PseudoDb([]).deserialize(content).record_set.items():
                if key[4] == "node__hidden":
                    found[key[1], key[2], key[7], key[8]] = held.get("val")
    return found


def _by_hand(scene: Scene) -> tuple[Tensor, Tensor]:
    """(4, 8): the registered tensor, and its gradient."""
    net, x = scene.net()
    hidden = net.second(torch.relu(net.first(x)))
    return hidden.detach(), torch.autograd.grad(net.last(hidden.relu()).sum(), hidden)[0]


def _neurons(found: Any) -> Any:
    rows = range(4)
    return torch.tensor([[found["forward", f"Sample {row}", "neuron", str(unit)] for unit in range(8)] for row in rows])


def in_place(scene: Scene) -> Any:
    return _neurons(_recorded(*scene.net(), in_place=True))


def wrong_keyword(scene: Scene) -> Any:
    return _neurons(_recorded(*scene.net(), recording_kind="neuron"))


def forgotten_save(scene: Scene) -> Any:
    return torch.tensor(_recorded(*scene.net(), save=False)["gradients", "batch_mean", "mean", None])


def frozen_parameters(scene: Scene) -> Any:
    net, x = scene.net()
    net.requires_grad_(False)
    _recorded(net, x)
    return torch.tensor([int(p.requires_grad) for p in net.parameters()])


MEANT = {
    "in_place": lambda scene: _by_hand(scene)[0],
    "wrong_keyword": lambda scene: _by_hand(scene)[0],
    "forgotten_save": lambda scene: _by_hand(scene)[1].mean(),
    "frozen_parameters": lambda scene: torch.zeros(6, dtype=torch.int64),
}
