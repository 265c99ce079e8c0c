"""Record two kinds of training steps, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Forward AND backward pass"
Serves: gpt2
Note: Its monitor of training, torchlens.observability.HistoryCollector, keeps no gradients of activations and no
kinds of steps; the figures, the kinds and the loop are the user's.
"""

from __future__ import annotations

from typing import Any

import torch
import torchlens as tl
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # --- operation
    path = f"transformer.h.{layer}"
    capture = tl.options.CaptureOptions(save_grads=tl.module(path))
    rows: dict[str, list[Tensor]] = {}
    for kind, ids in batches:
        log = tl.trace(model, ids, {"use_cache": False}, capture=capture)
        logits = log[log.output_layers[0]].out
        optimizer.zero_grad()
        log.log_backward(model.loss_function(logits, ids, model.config.vocab_size))
        optimizer.step()
        rows.setdefault(kind, []).append(torch.stack([log[path].out.detach().mean(), log[path].grad.abs().max()]))
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
