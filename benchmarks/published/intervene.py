"""The task `mlp_intervene` of TDHook's benchmark, by two libraries; run once, or only prepared, as a program.

    python -m crosslens.benchmarks.published.intervene tdhook --run

It imports no more than the task needs, since whole processes of it are timed.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

TIMES = 10  # edits: the default of its programs


class MLP(nn.Module):
    """`height` linear layers of one width, each followed by a ReLU: as in TDHook's benchmark, and in nnsight's."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(height)])
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, width)."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


def mlp(height: int, width: int, seed: int) -> MLP:
    """A seeded one."""
    torch.manual_seed(seed)
    return MLP(height, width).eval()


def tdhook_intervenes(model: MLP, x: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor]:
    """The task `mlp_intervene` by tdhook 0.3's `HookSession`: the first layer's output put behind the last but one, one
    added to it `times` times; that output, what it became, and the last layer of it."""
    from tdhook.session import HookSession
    from tdhook.targets import Target

    units = tuple(range(model.width))
    first, target = (Target(f"layers.{n}", "activation", -1, units) for n in (0, model.height - 2))
    with HookSession(model) as session:
        state = session.capture(first, detach=False)
        session.replace(target, state)
        for _ in range(times):
            before = session.capture(target, detach=False)
            session.replace(target, before, transform=lambda value: value + 1)
        after = session.capture(target)
        model(x)
    return state.values[-1], after.values[-1], model.layers[-1](after.values[-1])


def nnsight_intervenes(wrapped: Any, x: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same by nnsight, as its program has it."""
    with wrapped.trace(x):
        state = wrapped.layers[0].output.save()
        wrapped.layers[-2].output[:] = state
        for _ in range(times):
            added = wrapped.layers[-2].output + 1
            wrapped.layers[-2].output[:] = added
        after = wrapped.layers[-2].output.save()
        last = wrapped.layers[-1](after).save()
    return state, after, last


def main(library: str, run: bool) -> float:
    """Prepare `mlp_intervene`, run it once if asked to; seconds of the latter."""
    model, x = mlp(10, 10, 42), torch.randn(10, 10)
    if library == "nnsight":
        from nnsight import NNsight

        wrapped = NNsight(model)
    else:
        importlib.import_module("tdhook.session")  # preparing imports, as theirs does
    start = time.perf_counter()
    if run and library == "nnsight":
        nnsight_intervenes(wrapped, x, TIMES)
    elif run:
        tdhook_intervenes(model, x, TIMES)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(main(sys.argv[1], "--run" in sys.argv[2:]))
