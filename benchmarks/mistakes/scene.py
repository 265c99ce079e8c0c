"""The tiny models and inputs that mistakes are made on."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crosslens.tasks import load_model

if TYPE_CHECKING:
    from crosslens.adapters.conformance.oracle import Oracle

LAYERS, POSITIONS, HEADS, D_HEAD, D_MODEL, D_MLP = 3, 7, 4, 8, 32, 80
ROWS = ([7, 30, 12, 55, 108, 41, 19], [88, 23, 61, 14, 37])
NEW = 4
"""Tokens that are generated."""


class Net(nn.Module):
    """A network that is no language model: (batch, 6) -> (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 6) -> (batch, 3)."""
        out: Tensor = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return out


class Scene:
    """What a program is given. Every model is new, in float32, on the CPU, in evaluation mode.

    Attributes:
        ids: (1, 7) token ids.
        other: (1, 7) others.
        mask: (2, 7), 1 at real tokens, of `left`; its rows are 7 and 5 tokens long.
        left, right: (2, 7) token ids padded on that side.
        vector: (1, 1, 32), to steer with or to put in place of one position.
        backend: that crosslens is to open.
    """

    def __init__(self, backend: str = "hooks") -> None:
        self.backend = backend
        first, second = ROWS
        gap = [0] * (len(first) - len(second))
        self.ids = torch.tensor([first])
        self.other = torch.tensor([[64, 9, 77, 31, 45, 20, 52]])
        self.left, self.mask = torch.tensor([first, gap + second]), torch.tensor([[1] * 7, [0] * 2 + [1] * 5])
        self.right = torch.tensor([first, second + gap])
        self.vector = 4 * torch.randn(1, 1, D_MODEL, generator=torch.Generator().manual_seed(3))

    @property
    def right_mask(self) -> Tensor:
        """(2, 7), of `right`."""
        return self.mask.flip(1)

    def llama(self) -> Any:
        """3 layers, d_model 32, 4 query heads of 8 on 2 key and value heads, d_mlp 80; eager attention."""
        return self._load("tiny-llama")

    def gpt2(self) -> Any:
        """The same sizes, with learned positions and, when it trains, dropout."""
        return self._load("tiny-gpt2")

    @property
    def tokenizer(self) -> Any:
        """Of both models."""
        return load_model("tiny-llama")[1]

    def net(self) -> tuple[Net, Tensor]:
        """A `Net` and a (4, 6) input."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return Net().eval(), torch.randn(4, 6)

    def _load(self, name: str) -> Any:
        return load_model(name, attn_implementation="eager")[0]

    @cached_property
    def truth(self) -> Oracle:
        """The float64 oracle of the llama."""
        return self._oracle("tiny-llama")

    @cached_property
    def truth_gpt2(self) -> Oracle:
        """The float64 oracle of the gpt2."""
        return self._oracle("tiny-gpt2")

    def _oracle(self, name: str) -> Oracle:
        from crosslens.adapters.conformance.oracle import Oracle

        return Oracle(self._load(name))

    def after(self, *edits: Any) -> Tensor:
        """(1, 7, vocabulary): the llama's logits under edits."""
        return self.truth.run(self.ids, edits=edits).logits

    def at(self, *sites: str) -> Tensor:
        """(sites, ...): tensors of the llama's plain forward; of one site, its tensor."""
        run = self.truth.run(self.ids)
        return run.sites[sites[0]] if len(sites) == 1 else torch.stack([run.sites[site] for site in sites])

    def rows_alone(self) -> Tensor:
        """(2, vocabulary): the gpt2's logits at the last token of each row, run by itself."""
        return torch.stack([self.truth_gpt2.run(torch.tensor([row])).logits[0, -1] for row in ROWS])
