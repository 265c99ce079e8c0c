"""Runs in which something is planted: what is recorded of them, for growing numbers of examples, and what is true.

On the way forward (`Forward`) tiny Llamas read random texts of two categories, and a difference is planted in the
activations of one of them, by an edit. On the way back (`Training`) they are trained in steps of two categories, and in
those of one of them a gradient explodes or vanishes at one module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from crosslens.adapters import Inspector, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks import Comparison, Recorder, compare
from crosslens.tasks.direction import direction_tests
from crosslens.tasks.planting import affected, affected_gradients, fault, plant, planted

from .known_truth_ways import Labels, Observed

SITES = (
    "embed", "blocks.*.attn.z", "blocks.*.attn.out", "blocks.*.mlp.post", "blocks.*.mlp.out", "blocks.*.resid_post",
    "final_norm",
)  # fmt: skip
"""What is watched: 17 sites whose tensors hold a vector for each token."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEP_TEXTS, STEP_LETTERS = 4, 12
RATE = 0.01
"""Texts of a training step, letters of each, and the learning rate of plain gradient descent."""


def random_texts(count: int, seed: int, shortest: int = 8, longest: int = 24) -> list[str]:
    """Texts of so many random letters, which are as many tokens."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list(LETTERS), rng.integers(shortest, longest + 1))) for _ in range(count)]


def in_order(lens: Inspector) -> list[str]:
    """Names of `SITES` in the order of execution."""
    sites = lens.architecture.sites
    watched = {site.name for site in sites.resolve(SITES)}
    return [name for name in sites.canonical if name in watched]


@dataclass
class Forward:
    """Examples of two categories that a model reads, in one of them under edits.

    Args:
        seed: of the model, the texts, and what is drawn in planting.
        counts: examples of each category at which to look, ascending.
        permutations: relabellings of each test.
    """

    seed: int
    counts: Sequence[int]
    permutations: int
    lens: Inspector = field(init=False)
    places: list[str] = field(init=False)
    _parts: dict[int, Comparison] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.lens = open_inspector("hooks", *tiny_model("llama", seed=self.seed))
        self.places = in_order(self.lens)
        self._texts = random_texts(2 * max(self.counts), self.seed)

    def truth(self, site: str) -> Labels:
        """(place,) whether a difference planted at the site reaches it."""
        reached = set(affected(self.lens, site))
        return np.array([place in reached for place in self.places])

    def observe(self, kind: str, site: str, size: float) -> Iterator[Observed]:
        """What is recorded at each of `counts`; the smaller are the first of the larger. Kind "" plants nothing."""
        sick = planted(self.lens, plant(kind, site, size, seed=self.seed)) if kind else self.lens
        parts = []
        for start, end in zip([0, *self.counts], self.counts, strict=False):
            if start not in self._parts:  # the same for all that is planted
                self._parts[start] = self._compare(self.lens, "well", start, end)
            parts += [self._parts[start], self._compare(sick, "sick", start, end)]
            yield self._observed(reduce(Comparison.merge, parts))

    def _compare(self, lens: Inspector, category: str, start: int, end: int) -> Comparison:
        texts = self._texts[category == "sick" :: 2][start:end]
        examples = [{"text": text, "category": category} for text in texts]
        return compare(lens, examples, sites=SITES, directions=SITES, batch_size=64)

    def _observed(self, result: Comparison) -> Observed:
        return Observed(
            self.places,
            result.contrasts(permutations=self.permutations, seed=self.seed),
            result.directions(permutations=self.permutations, seed=self.seed),
            result.facts.features,
            result.values,
            {site: vectors.astype(np.float64) for site, vectors in result.vectors.items()},
            (result.examples["category"] == "sick").to_numpy(),
        )

    def close(self) -> None:
        """Let go of the model."""
        self.lens.close()


@dataclass
class Training:
    """Steps of two categories in random order, in one of which a gradient goes wrong; arguments as of `Forward`.

    The places are the gradients at `SITES`, in the order in which they come, from the last site to the first.
    """

    seed: int
    counts: Sequence[int]
    permutations: int

    def __post_init__(self) -> None:
        self.model, self._tokenizer = tiny_model("llama", seed=self.seed)
        self._start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.lens = open_inspector("hooks", self.model, self._tokenizer)
        self.places = in_order(self.lens)[::-1]

    def truth(self, site: str) -> Labels:
        """(place,) whether its gradient has come through the site."""
        reached = set(affected_gradients(self.lens, site))
        return np.array([place in reached for place in self.places])

    def observe(self, kind: str, site: str, size: float) -> Iterator[Observed]:
        """As `Forward.observe`; the site is the output of a block, which is where `fault` is planted."""
        self.model.load_state_dict(self._start)
        block = self.model.get_submodule(f"model.layers.{site.split('.')[1]}") if kind else None
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        recorder = Recorder(self.model, SITES, parameters=False)
        vectors: dict[str, list[Any]] = {place: [] for place in self.places}
        categories: list[str] = []
        rng = np.random.default_rng(self.seed)
        texts = random_texts(2 * max(self.counts) * STEP_TEXTS, self.seed, STEP_LETTERS, STEP_LETTERS)
        for start, end in zip([0, *self.counts], self.counts, strict=False):
            for category in rng.permutation(["well", "sick"] * (end - start)).tolist():
                at = STEP_TEXTS * len(categories)
                ids = torch.tensor(self._tokenizer(texts[at : at + STEP_TEXTS])["input_ids"])
                sick = block is not None and category == "sick"
                edits = plant(kind, site, size) if sick else []
                gradients = self.lens.gradients(ids, SITES, partial(next_token_loss, ids=ids), edits=edits)
                for place in self.places:
                    vectors[place].append(gradients[place].flatten(2).mean((0, 1), dtype=torch.float64).numpy())
                with recorder.step(category), fault(block, kind, size) if sick and block else nullcontext():
                    optimizer.zero_grad()
                    torch.autograd.backward(next_token_loss(self.model(ids).logits, ids))
                    optimizer.step()
                categories.append(category)
            yield self._observed(recorder, vectors, categories)

    def _observed(self, recorder: Recorder, vectors: dict[str, list[Any]], categories: list[str]) -> Observed:
        found = recorder.contrasts(permutations=self.permutations, seed=self.seed)
        table = recorder.table(["gradient"])
        wide = table.pivot_table(index="step", columns=["site", "kpi"], values="value", sort=True)
        stacked: dict[Any, Any] = {place: np.stack(vectors[place]) for place in self.places}
        directions = direction_tests(stacked, categories, permutations=self.permutations, seed=self.seed)
        return Observed(
            self.places,
            found[found["kind"] == "gradient"].reset_index(drop=True),
            directions,
            cast(list[tuple[str, str]], wide.columns.tolist()),
            wide.to_numpy(dtype=np.float64),
            stacked,
            np.array(categories) == "sick",
        )

    def close(self) -> None:
        """Let go of the model."""
        self.lens.close()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token: logits (batch, pos, vocab), ids (batch, pos)."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
