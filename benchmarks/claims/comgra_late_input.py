"""comgra 0.11.5: an input that is registered after its use has no edge in the graph.

Claim: what depends on a tensor is found by what requires a gradient when it is used; an input that is registered
later is in the graph without a connection, and nothing says so.
Documentation followed: the README's minimal example.
Right: register before the use. Through crosslens no graph of dependencies is kept.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from comgra.recorder import ComgraRecorder
from torch import nn


def main() -> dict[str, Any]:
    """Register the input before and after the forward; `holds` where the latter lacks the edge."""
    edges = [_edge(early) for early in (True, False)]
    return {
        "claim": "an input registered after its use has no edge to what depends on it",
        "library": "comgra",
        "version": version("comgra"),
        "upstream": "not found upstream",
        "observed": {"edge from input to output": edges[1]},
        "expected": {"edge from input to output": edges[0]},
        "holds": edges == [True, False],
    }


def _edge(early: bool) -> bool:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as root:
        recorder = ComgraRecorder(root, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1))
        model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
        recorder.track_module("net", model)
        recorder.start_batch(0, 5)
        recorder.start_iteration()
        if early:
            recorder.register_tensor("inputs", inputs, is_input=True)
        outputs = model(inputs)
        recorder.register_tensor("outputs", outputs)
        if not early:
            recorder.register_tensor("inputs", inputs, is_input=True)
        loss = outputs.square().mean()
        recorder.register_tensor("loss", loss, is_loss=True)
        loss.backward()
        recorder.record_current_gradients("gradients")
        recorder.finish_iteration()
        recorder.finish_batch()
        (graph,) = Path(root, "group/node_graph_structure").iterdir()
        return ("node__inputs", "node__outputs") in pickle.loads(graph.read_bytes()).node_connections


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
