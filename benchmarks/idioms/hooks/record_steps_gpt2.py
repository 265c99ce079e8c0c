"""Record two kinds of training steps, with a PyTorch hook.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html, "register_forward_hook";
torch.Tensor.retain_grad
Serves: gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # --- operation
    stream: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {}
    handle = model.transformer.h[layer].register_forward_hook(lambda module, args, output: stream.append(output))
    for kind, ids in batches:
        stream.clear()
        loss = model(ids, labels=ids).loss
        stream[0].retain_grad()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gradient: Any = stream[0].grad
        rows.setdefault(kind, []).append(torch.stack([stream[0].detach().mean(), gradient.abs().max()]))
    handle.remove()
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
