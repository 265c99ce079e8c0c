"""Record two kinds of training steps, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation" and "Layer Gradient X Activation"
Serves: gpt2
Note: It has no recorder: the figures, the kinds and the loop are the user's, and each figure takes a forward of its
own.
"""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerActivation, LayerGradientXActivation
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)

    # --- operation
    def loss_of(ids: Tensor) -> Any:
        return model(ids, labels=ids).loss[None]

    block = model.transformer.h[layer]
    activation = LayerActivation(loss_of, block)
    gradient = LayerGradientXActivation(loss_of, block, multiply_by_inputs=False)
    rows: dict[str, list[Tensor]] = {}
    for kind, ids in batches:
        figures = torch.stack([activation.attribute(ids).mean(), gradient.attribute(ids).abs().max()])
        rows.setdefault(kind, []).append(figures)
        optimizer.zero_grad()
        loss_of(ids).backward()
        optimizer.step()
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
