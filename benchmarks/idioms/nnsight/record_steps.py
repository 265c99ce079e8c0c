"""Record two kinds of training steps, with nnsight.

Documentation: https://github.com/ndif-team/nnsight/tree/main/docs, usage/backward-and-grad and
usage/conditionals-and-loops
Serves: llama
Note: It has no recorder: the figures, the kinds and the loop are the user's.
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor


def run(model: Any, tokenizer: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    lm = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # --- operation
    rows: dict[str, list[Tensor]] = {}
    for kind, ids in batches:
        optimizer.zero_grad()
        with lm.trace(ids, labels=ids):
            stream = lm.model.layers[layer].output
            mean = stream.detach().mean().save()
            with lm.output.loss.backward():
                largest = stream.grad.abs().max().save()
        optimizer.step()
        rows.setdefault(kind, []).append(torch.stack([mean, largest]))
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
