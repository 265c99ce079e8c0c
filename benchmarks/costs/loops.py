"""Small trainings that are recorded: a residual MLP and a transformer, each with its optimiser and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """An MLP with four residual blocks, 64 to 256 units."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 256)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(4))
        self.leave = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) -> (batch, 10)."""
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.leave(x)
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, 64 units, 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.q, self.k, self.v, self.o = (nn.Linear(64, 64) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pos, 64) -> the same."""
        h = self.norm1(x)
        q, k, v = (each(h).unflatten(-1, (4, 16)).transpose(1, 2) for each in (self.q, self.k, self.v))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(-2))
        out: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Two blocks between an embedding and an unembedding of 100 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 64)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.unembed = nn.LayerNorm(64), nn.Linear(64, 100)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, pos) -> (batch, 100): logits at the last position."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.unembed(self.norm(x))[:, -1]
        return out


@dataclass
class Loop:
    """One model with its optimiser and inputs; its state goes on from block to block."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)

    @property
    def layers(self) -> list[str]:
        """Modules that hold no other."""
        return [name for name, module in self.model.named_modules() if not list(module.children())]

    def loss(self) -> Tensor:
        """The forward."""
        self.optimizer.zero_grad()
        return nn.functional.cross_entropy(self.model(self.inputs), self.targets)


def residual() -> Loop:
    """Of the MLP, batch 32."""
    return Loop(Residual(), torch.randn(32, 64), torch.randint(0, 10, (32,)))


def transformer() -> Loop:
    """Of the transformer, batch 8, 32 positions."""
    return Loop(Transformer(), torch.randint(0, 100, (8, 32)), torch.randint(0, 100, (8,)))


def bare(loop: Loop, steps: int) -> None:
    """The steps alone."""
    for _ in range(steps):
        loop.loss().backward()  # type: ignore[no-untyped-call]
        loop.optimizer.step()


LOOPS: dict[str, Callable[[], Loop]] = {"residual MLP, batch 32": residual, "transformer, 8 x 32": transformer}
