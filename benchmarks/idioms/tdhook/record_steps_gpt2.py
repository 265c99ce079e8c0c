"""Record two kinds of training steps, with tdhook.

Documentation: https://tdhook.readthedocs.io/en/latest/notebooks/tutorials/hook-session.html, "Targets and capture
results" and "Gradient operations"
Serves: gpt2
Note: It has no recorder: the figures, the kinds and the loop are the user's.
"""

from __future__ import annotations

from typing import Any

import torch
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # --- operation
    units = tuple(range(model.config.hidden_size))
    rows: dict[str, list[Tensor]] = {}
    with HookSession(model) as session:
        stream = session.capture(Target(f"transformer.h.{layer}", "activation", -1, units))
        gradient = session.capture(Target(f"transformer.h.{layer}", "gradient", -1, units))
        for kind, ids in batches:
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows.setdefault(kind, []).append(torch.stack([stream.values[-1].mean(), gradient.values[-1].abs().max()]))
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
