"""A window of a corpus: its examples sorted by length, run in padded batches, and read where the tensors pass."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosslens.adapters import InputError, Inspector

from .accumulators import UnitMoments
from .category import Sums, Vectors, all_joined
from .comparison import Facts, is_pattern
from .engine import KPIS, derive, fields
from .examples import Example
from .kernels import FIELDS, Array
from .kpis import causal_mask


@dataclass(frozen=True)
class Window:
    """Examples that were run together, and what was read of them.

    Args:
        number: its place in the corpus, from 0.
        examples: in the order of the corpus.
        tokens: of each.
        figures: (example, feature).
        vectors: (example, vector) mean vectors of the sites whose directions are kept, side by side.
        sums: by category.
    """

    number: int
    examples: list[Example]
    tokens: list[int]
    figures: Array
    vectors: Vectors
    sums: dict[tuple[str, ...], Sums]


def mark(examples: Sequence[Example]) -> str:
    """Digest of examples in their order."""
    return hashlib.blake2b("".join(example.mark for example in examples).encode(), digest_size=16).hexdigest()


def windows(source: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Lists of so many examples; the last may be shorter."""
    source = iter(source)
    while window := list(islice(source, size)):
        yield window


class Reader:
    """Runs windows.

    Args:
        lens: an open inspector.
        facts: what to take.
        batch_size: examples of one forward.
        limit: most tokens of an example.
    """

    def __init__(self, lens: Inspector, facts: Facts, batch_size: int, limit: int) -> None:
        self.lens, self.facts, self.batch_size, self.limit = lens, facts, batch_size, limit
        family = lens.architecture.family
        self.causal = family is None or family.causal
        self.place = {site: i for i, site in enumerate(facts.sites)}
        self.columns = {site: [KPIS.index(kpi) for kpi in facts.kpis_at(site)] for site in facts.sites}
        self.wide: dict[str, slice] = {}
        self.width = 0
        for site, size in {**facts.directions, **facts.units}.items():
            self.wide[site] = slice(self.width, self.width + size)
            self.width += size

    def ids(self, example: Example) -> list[int]:
        """Token ids.

        Raises:
            InputError: too many, or none.
        """
        found = list(self.lens.tokenizer(example.text)["input_ids"])
        if not 0 < len(found) <= self.limit:
            raise InputError(
                f"example {example.number + 1} has {len(found):,} tokens ({len(example.text):,} characters); there "
                f"must be 1 to {self.limit:,} (max_tokens, or what the model takes): shorten it, or leave it out"
            )
        return found

    def check(self, example: Example) -> None:
        """InputError if the example is too long. Only a text of many bytes is tokenised: no token is of less."""
        if len(example.text.encode()) + 8 > self.limit:
            self.ids(example)

    def window(self, number: int, examples: list[Example], told: Callable[[int], None]) -> Window:
        """Run a window; `told` is called with the number of examples after each forward.

        Raises:
            InputError: an example is too long.
            SiteError, UnsupportedError: as `Inspector.run`.
        """
        rows = [self.ids(example) for example in examples]
        elements = np.zeros((len(rows), len(self.facts.sites), len(FIELDS)))
        means = np.zeros((len(rows), self.width), dtype=np.float32)
        order = np.argsort([len(row) for row in rows], kind="stable").tolist()
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        random.Random(number).shuffle(batches)  # short and long in turn: the time that is left can then be told
        for batch in batches:
            self._batch([rows[i] for i in batch], elements, means, batch)
            told(len(batch))
        parts = [derive(elements[:, i], is_pattern(site))[:, self.columns[site]] for site, i in self.place.items()]
        kept = [self.wide[site] for site in self.facts.directions]
        vectors = np.concatenate([means[:, at] for at in kept], axis=1) if kept else means[:, :0]
        by_category: dict[tuple[str, ...], list[int]] = {}
        for i, example in enumerate(examples):
            by_category.setdefault(example.categories, []).append(i)
        sums = {labels: Sums(all_joined(elements[at]), self._units(means[at])) for labels, at in by_category.items()}
        return Window(number, examples, [len(row) for row in rows], np.concatenate(parts, axis=1), vectors, sums)

    def _units(self, means: Vectors) -> UnitMoments:
        sites = [self.wide[site] for site in self.facts.units]
        found = UnitMoments(sum(self.facts.units.values()))
        if sites:
            found.update(torch.from_numpy(np.concatenate([means[:, at] for at in sites], axis=1)))
        return found

    def _batch(self, rows: list[list[int]], elements: Array, means: Vectors, at: list[int]) -> None:
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])

        def look(site: str, tensor: Tensor) -> None:
            tensor = tensor.cpu()
            if site in self.place:
                mask = self._mask(tensor, real, is_pattern(site))
                elements[at, self.place[site]] = fields(tensor, mask, is_pattern(site), ())
            if site in self.wide:
                means[at, self.wide[site]] = _means(tensor, real)

        sites = list(dict.fromkeys([*self.place, *self.wide]))
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": real.long()}
        self.lens.watch(inputs, sites, look)

    def _mask(self, tensor: Tensor, real: Tensor, pattern: bool) -> Tensor | None:
        """Real elements of a site's tensor, with 1 in place of axes along which they are the same."""
        if pattern:
            return causal_mask(real) if self.causal else (real[:, :, None] & real[:, None])[:, None]
        if tensor.shape[:2] == real.shape:
            return real.view(*real.shape, *[1] * (tensor.ndim - 2))
        if tensor.ndim and len(tensor) == len(real):  # a module's own tensor without the tokens' axis
            return None
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)} has no axis of the batch's {len(real)} examples, so that none "
            "has figures of its own: leave its site out"
        )


def _means(tensor: Tensor, real: Tensor) -> Vectors:
    """(example, unit) means over real tokens; what is no real token takes no part, not even as NaN."""
    wide = tensor.flatten(2)
    total = torch.where(real[..., None], wide, 0).sum(1, dtype=torch.float64)
    return np.asarray((total / real.sum(1, keepdim=True)).numpy(), dtype=np.float32)
