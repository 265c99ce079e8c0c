"""What all key figures of a tensor cost: in one pass, as separate reductions, and as a mere copy.

python -m crosslens.benchmarks.kpi_cost
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from crosslens.tasks.engine import KPIS, figures

from .estimate import median_ratio
from .timing import no_garbage_collection, seconds


def separately(x: Tensor) -> Tensor:
    """The same figures by one PyTorch reduction each, in the tensor's own dtype: (batch, KPI)."""
    flat = x.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    sd = flat.std(1, correction=0)
    found = [
        torch.full((len(x),), float(flat.shape[1])), flat.mean(1), sd, flat.abs().mean(1), flat.square().mean(1).sqrt(),
        flat.abs().amax(1), flat.amin(1), flat.amax(1), (flat == 0).float().mean(1), x.norm(dim=-1).flatten(1).mean(1),
        torch.full((len(x),), torch.nan), centred.pow(3).mean(1) / sd**3, centred.pow(4).mean(1) / sd**4 - 3,
        flat.isnan().sum(1).float(), flat.isinf().sum(1).float(),
    ]  # fmt: skip
    return torch.stack(found, dim=-1)


def main(rounds: Annotated[int, typer.Option(help="Rounds; each calls every way once.")] = 9) -> None:
    """Time the KPI pass on one thread, for tensors of 1, 35 and 300 MB (8 examples of 576 units, float32)."""
    torch.set_num_threads(1)
    table = Table(title=f"all {len(KPIS)} key figures of a float32 tensor, one thread, {rounds} rounds, medians [95 %]")
    for column in ("MB", "one pass, ms", "separate / one pass", "one pass / copy", "one pass / new copy"):
        table.add_column(column, justify="right")
    for size in (1, 35, 300):
        x = torch.randn(8, round(size * 1e6 / 4 / 8 / 576), 576, generator=torch.Generator().manual_seed(0))
        there = torch.empty_like(x)
        ways: dict[str, Callable[[], object]] = {
            "one pass": lambda x=x: figures(x),  # type: ignore[misc]
            "separate": lambda x=x: separately(x),  # type: ignore[misc]
            "copy": lambda x=x, there=there: there.copy_(x),  # type: ignore[misc]
            "new copy": lambda x=x: x.clone(),  # type: ignore[misc]
        }
        error = (figures(x)[:, :10] - separately(x)[:, :10].double()).abs().max()
        assert error < 1e-3, f"the two ways differ by {error:.2g}"
        samples = _samples(ways, rounds, calls=max(1, 20 // size))
        ratios = [
            median_ratio([samples[a] / samples[b]])
            for a, b in (("separate", "one pass"), ("one pass", "copy"), ("one pass", "new copy"))
        ]
        shown = [f"{r.value:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in ratios]
        table.add_row(str(size), f"{1e3 * np.median(samples['one pass']):.2f}", *shown)
    Console(width=120).print(table)


def _samples(ways: dict[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, np.ndarray]:
    """Seconds a call, (rounds,) for each way, in an order drawn anew each round."""
    order, drawn = list(ways), random.Random(0)
    samples: dict[str, list[float]] = {way: [] for way in ways}
    with no_garbage_collection():
        for _ in range(rounds):
            drawn.shuffle(order)
            for way in order:
                samples[way].append(seconds(ways[way], calls))
    return {way: np.array(values) for way, values in samples.items()}


if __name__ == "__main__":
    typer.run(main)
