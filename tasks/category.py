"""What is kept of one category of examples: sums that merge, sketches, and a few examples as they are.

All of it merges in any order to the same, to rounding; only the coin flips inside the sketches are their own.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from .accumulators import Quantiles, UnitMoments
from .examples import Example
from .kernels import Array, empty, joined

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Sizes: features (site x KPI), sites, length of the kept vector, units; and how many examples are kept."""

    features: int
    sites: int
    vector: int
    units: int
    keep: int
    seed: int


@dataclass(frozen=True)
class Sums:
    """What a window adds to a category beside the figures of its examples.

    Args:
        elements: (site, fields of `kernels.FIELDS`) of all elements of its examples.
        units: of the mean vectors of its examples.
    """

    elements: Array
    units: UnitMoments


@dataclass(frozen=True)
class Kept:
    """An example with its figures (feature,) and its vector (vector,)."""

    example: Example
    figures: Array
    vector: Vectors


class Category:
    """One category.

    Attributes:
        n: examples seen.
        moments: over the examples, of each finite figure.
        low, high: (feature,) of the finite figures.
        sketches: of the finite figures.
        elements: (site, fields) of all elements of all examples.
        units: over the examples, of each unit of the mean vectors.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.n = 0
        self.moments = UnitMoments(shape.features)
        self.low: Array = np.full(shape.features, np.inf)
        self.high: Array = np.full(shape.features, -np.inf)
        self.sketches = Quantiles(shape.features)
        self.elements: Array = empty(shape.sites)
        self.units = UnitMoments(shape.units)
        self._heap: list[tuple[int, int, Kept]] = []  # (-key, -number, ...): the largest key comes off first

    def add(self, examples: Sequence[Example], figures: Array, vectors: Vectors, sums: Sums) -> None:
        """Take in examples with their figures (example, feature) and vectors (example, vector)."""
        self.n += len(examples)
        self.moments.update(torch.from_numpy(figures))
        seen = np.isfinite(figures)
        self.low = np.minimum(self.low, np.where(seen, figures, np.inf).min(axis=0))
        self.high = np.maximum(self.high, np.where(seen, figures, -np.inf).max(axis=0))
        self.sketches.update(figures)
        self.elements = joined(self.elements, sums.elements)
        self.units = self.units.merge(sums.units)
        for example, row, vector in zip(examples, figures, vectors, strict=True):
            key = example.key(self.shape.seed)
            if self._wants(key, example.number):
                self.keep(key, Kept(example.short(), row.copy(), vector.copy()))

    def keep(self, key: int, kept: Kept) -> None:
        """Keep an example if its key is among the smallest: a sample that does not depend on the order."""
        entry = (-key, -kept.example.number, kept)
        if len(self._heap) < self.shape.keep:
            heapq.heappush(self._heap, entry)
        elif self._wants(key, kept.example.number):
            heapq.heapreplace(self._heap, entry)

    def _wants(self, key: int, number: int) -> bool:
        return len(self._heap) < self.shape.keep or (-key, -number) > self._heap[0][:2]

    @property
    def kept(self) -> list[Kept]:
        """The kept examples in the order of their keys, which is as good as random."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    @property
    def numbers(self) -> set[int]:
        """Numbers of the kept examples."""
        return {entry[2].example.number for entry in self._heap}

    @property
    def missing(self) -> Array:
        """(feature,) examples without a finite figure."""
        return self.n - self.moments.count

    def merge(self, other: Self) -> Self:
        """Both together, as a new category."""
        out = type(self)(self.shape)
        out.n = self.n + other.n
        out.moments, out.units = self.moments.merge(other.moments), self.units.merge(other.units)
        out.low, out.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        out.sketches = self.sketches.merge(other.sketches)
        out.elements = joined(self.elements, other.elements)
        for part in (self, other):
            for entry in part._heap:
                out.keep(-entry[0], entry[2])
        return out

    def quantiles(self, ranks: Sequence[float]) -> Array:
        """(feature, rank): exact while all examples are kept, then those of the sketches."""
        if len(self._heap) < self.n:
            return self.sketches.quantiles(ranks)
        values = np.stack([entry[2].figures for entry in self._heap])
        values = np.where(np.isfinite(values), values, np.nan)
        usable = ~np.isnan(values).all(axis=0)
        found = np.full((values.shape[1], len(ranks)), np.nan)
        if usable.any():
            found[usable] = np.nanquantile(values[:, usable], list(ranks), axis=0).T
        return found

    def __reduce__(self) -> Any:
        """For pickle, which cannot take the sketches as they are."""
        return _restored, (self.shape, self.to_arrays(), self._heap)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All but the examples themselves, as arrays that `from_arrays` takes."""
        sketches = self.sketches.to_bytes()
        return {
            "n": np.array(self.n), "moments": stacked(self.moments), "low": self.low, "high": self.high,
            "elements": self.elements, "units": stacked(self.units),
            "sketches": np.frombuffer(b"".join(sketches), dtype=np.uint8),
            "sketch_sizes": np.array([len(each) for each in sketches], dtype=np.int64),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, shape: Shape, arrays: dict[str, NDArray[Any]]) -> Self:
        """What `to_arrays` gave, without kept examples.

        Raises:
            ValueError, KeyError: the arrays are not of this shape.
        """
        out = cls(shape)
        out.n = int(arrays["n"])
        out.moments, out.units = unit_moments(arrays["moments"]), unit_moments(arrays["units"])
        out.low, out.high, out.elements = arrays["low"], arrays["high"], arrays["elements"]
        ends = np.cumsum(arrays["sketch_sizes"]).tolist()
        data = arrays["sketches"].tobytes()
        out.sketches = Quantiles.from_bytes([data[a:b] for a, b in zip([0, *ends], ends, strict=False)])
        if not len(out.low) == len(out.high) == len(out.moments.count) == len(ends) == shape.features:
            raise ValueError(f"sums of {len(out.low)} features; there must be {shape.features}")
        if out.elements.shape != empty(shape.sites).shape or len(out.units.count) != shape.units:
            raise ValueError(f"sums of {len(out.elements)} sites; there must be {shape.sites}")
        return out


def _restored(shape: Shape, arrays: dict[str, NDArray[Any]], heap: list[tuple[int, int, Kept]]) -> Category:
    found = Category.from_arrays(shape, arrays)
    found._heap = heap
    return found


def all_joined(parts: Array) -> Array:
    """(part, ..., fields) -> (..., fields) of all parts together, by halves, which rounds less than one by one."""
    while len(parts) > 1:
        half = len(parts) // 2
        rest = parts[2 * half :]
        parts = np.concatenate([joined(parts[:half], parts[half : 2 * half]), rest])
    return np.asarray(parts[0], dtype=np.float64)


def unit_moments(stacked: Array) -> UnitMoments:
    """From (3, units): count, mean, sum of squares about it."""
    out = UnitMoments(stacked.shape[1])
    out.count, out.mean, out.m2 = (np.array(row, dtype=np.float64) for row in stacked)
    return out


def stacked(moments: UnitMoments) -> Array:
    """(3, units) that `unit_moments` takes."""
    return np.stack([moments.count, moments.mean, moments.m2])
