"""Record two kinds of training steps, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, "Wrap, intervene, and share";
IntervenableModel.enable_model_gradients
Serves: llama, gpt2
Note: It has no recorder: the figures, the kinds and the loop are the user's. What a function is shown is off the
graph; the gradient is that of a zero that is added. Wrapping freezes the parameters; unfreezing them turns training
mode on, which the model was not in.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    # --- operation
    stream: list[Tensor] = []

    def watch(base: Tensor, source: Any) -> Tensor:
        stream[:] = [base.detach().mean(), torch.zeros_like(base, requires_grad=True)]
        return base + stream[1]

    site = {"layer": layer, "component": "block_output", "intervention": watch}
    intervenable = pv.IntervenableModel(site, model=model)
    intervenable.enable_model_gradients()
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    rows: dict[str, list[Tensor]] = {}
    for kind, ids in batches:
        _, output = intervenable({"input_ids": ids, "labels": ids})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        gradient: Any = stream[1].grad
        rows.setdefault(kind, []).append(torch.stack([stream[0], gradient.abs().max()]))
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
