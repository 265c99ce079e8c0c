"""pyvene 0.1.8: an intervention at the input of the first layer writes into the caller's tensor.

Claim: an edit is written in place into the tensor that passes; where that is the model's input, the caller's tensor
is changed for good.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros", with a component given by its path.
Right: give a copy. Through crosslens an edit makes a new tensor.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch


def main() -> dict[str, Any]:
    """Zero position 1 of a layer's input; `holds` where the caller's tensor has the zeros."""
    inputs = torch.ones(1, 2, 4)
    sites = [{"component": "layer.input", "intervention": pv.ZeroIntervention()}]
    with torch.no_grad():
        pv.IntervenableModel(sites, model=_Layer())(base={"inputs": inputs}, unit_locations={"base": 1})
    return {
        "claim": "an edit at the first layer's input changes the caller's tensor",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"the caller's tensor": inputs[0, :, 0].tolist()},
        "expected": {"the caller's tensor": [1.0, 1.0]},
        "holds": inputs[0, :, 0].tolist() == [1.0, 0.0],
    }


class _Layer(torch.nn.Module):
    config, device = None, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layer(inputs)
        return output


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
