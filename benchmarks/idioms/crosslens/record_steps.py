"""Record two kinds of training steps, with crosslens.

Documentation: crosslens.tasks.Recorder and crosslens.tasks.Recording.table
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosslens.tasks import Recorder, Recording


def run(model: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float, folder: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    # --- operation
    with Recorder(model, f"blocks.{layer}.resid_post", out=folder, parameters=False) as recorder:
        for kind, ids in batches:
            with recorder.step(category=kind):
                loss = model(ids, labels=ids).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    table = Recording.load(folder).table()
    means = table[table["sample"].isna()].pivot_table(index="category", columns=["kind", "kpi"], values="value")
    return torch.tensor(means[[("activation", "mean"), ("gradient", "abs_max")]].to_numpy())
