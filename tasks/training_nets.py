"""Two small nets and the training runs that make them, healthy or with a planted fault.

Modular addition by a transformer of two blocks (Nanda et al. 2023, arXiv:2301.05217), and the handwritten digits of
scikit-learn by a convolutional net. The steps of a run come from two workers who draw batches alike, three in four from
the first; in a sick run the second falls ill halfway. Everything is float64: training is chaotic, and in float32
rounding alone would part two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

MODULUS = 23
WORKERS = ("worker 1", "worker 2")
GAIN = 20.0
RATE, MOMENTUM = 0.05, 0.9


class Net(nn.Module):
    """Base of the nets: `ill` turns the planted fault on, if the net has one."""

    ill: bool = False
    sites: tuple[str, ...]
    """Names of the modules whose outputs are recorded, in order of execution."""


class Adder(Net):
    """Tokens (batch, 2) of a and b -> logits (batch, MODULUS) of a + b mod MODULUS.

    Ill: what comes back to the second block's MLP in the backward is `GAIN` times what it should be.
    """

    sites = ("embed", "block1.attn", "block1.mlp", "block1", "block2.attn", "block2.mlp", "block2", "head")

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(MODULUS, width)
        self.place = nn.Parameter(torch.randn(2, width))
        self.block1, self.block2 = Block(width), Block(width)
        self.head = nn.Linear(width, MODULUS)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, 2) -> (batch, MODULUS)"""
        self.block2.ill = self.ill
        x = self.embed(tokens) + self.place
        logits: Tensor = self.head(self.block2(self.block1(x))[:, -1])
        return logits


class Block(nn.Module):
    """Attention and MLP before norms, each added to the residual stream."""

    ill = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pos, width) -> the same"""
        x = x + self.attn(self.norm1(x))
        found = self.mlp(self.norm2(x))
        if self.ill:
            found = _Amplified.apply(found)  # type: ignore[no-untyped-call]
        out: Tensor = x + found
        return out


class Attention(nn.Module):
    """Causal attention of four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, pos, width) -> the same"""
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.into(x).chunk(3, dim=-1))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        found: Tensor = self.out((pattern @ v).transpose(1, 2).flatten(2))
        return found


class Reader(Net):
    """Images (batch, 1, 8, 8) -> logits (batch, 10). Ill: half of the second convolution's channels are dead."""

    sites = ("conv1", "conv2", "dense", "head")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), Dying(8, 16, 3, padding=1, stride=2)
        self.dense, self.head = nn.Linear(256, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 8, 8) -> (batch, 10)"""
        self.conv2.ill = self.ill
        x = F.relu(self.conv2(F.relu(self.conv1(images))))
        logits: Tensor = self.head(F.relu(self.dense(x.flatten(1))))
        return logits


class Dying(nn.Conv2d):
    """A convolution whose first half of channels gives 0 where it is ill."""

    ill = False

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channel, height, width)"""
        found = super().forward(input)
        if not self.ill:
            return found
        alive = torch.arange(found.shape[1], device=found.device) >= found.shape[1] // 2
        return found * alive[:, None, None]


class _Amplified(torch.autograd.Function):
    """Nothing in the forward, `GAIN` times the gradient in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return GAIN * grads[0]


@dataclass(frozen=True)
class Training:
    """One run of training.

    Attributes:
        name: of the run.
        make: the net's class.
        batches: (inputs, labels) of each step.
        workers: who made each step.
        sick: steps with the fault.
        place: (kind, module) at which the fault is planted; None in a healthy run.
        faulty: whether the net has the fault; otherwise it is in the labels.
        seed: of the net's weights.
    """

    name: str
    make: Callable[[], Net]
    batches: list[tuple[Tensor, Tensor]]
    workers: list[str]
    sick: frozenset[int]
    place: tuple[str, str] | None
    faulty: bool
    seed: int

    def net(self, device: torch.device | str = "cpu") -> Net:
        """The net as training begins, in float64; the caller's random state is neither read nor changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make().double().train().to(device)


def trainings(steps: int) -> list[Training]:
    """Two healthy runs, and three with a fault that the second worker has from the middle on.

    Args:
        steps: of each run.
    """
    return [
        _training("addition", Adder, _additions, steps, None),
        _training("addition, exploding gradients", Adder, _additions, steps, ("gradient", "block2.mlp")),
        _training("digits", Reader, _digits, steps, None),
        _training("digits, dead units", Reader, _digits, steps, ("activation", "conv2")),
        _training("digits, mislabelled", Reader, _digits, steps, ("gradient", "head"), faulty=False),
    ]


def _training(
    name: str, make: Callable[[], Net], draw: Callable[[np.random.Generator], tuple[Tensor, Tensor]], steps: int,
    place: tuple[str, str] | None, *, faulty: bool = True,
) -> Training:  # fmt: skip
    rng = np.random.default_rng(0)
    batches = [draw(rng) for _ in range(steps)]
    workers = [WORKERS[i] for i in rng.permutation(np.arange(steps) % 4 == 0).astype(int)]
    late = (i for i, who in enumerate(workers) if i >= steps // 2 and who == WORKERS[1])
    sick = frozenset(late if place else ())
    if not faulty:  # each label is that of the next image
        batches = [(x, y.roll(1) if i in sick else y) for i, (x, y) in enumerate(batches)]
    return Training(name, make, batches, workers, sick, place, faulty and place is not None, seed=0)


def _additions(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor(rng.integers(MODULUS, size=(64, 2)))
    return tokens, tokens.sum(1) % MODULUS


@cache
def _images() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The digits and their labels, read once."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels


def _digits(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images, labels = _images()
    rows = rng.integers(len(labels), size=32)
    return torch.tensor(images[rows] / 16).reshape(-1, 1, 8, 8), torch.tensor(labels[rows])
