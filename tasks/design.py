"""The design of a comparison: checked labels of examples, which categories to contrast, and who is whose pair."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from crosslens.adapters.errors import InputError

from .permutation import Array, Index, Labels

REST = "rest"
Between = Sequence[tuple[Hashable, Hashable]] | Literal["rest"] | None
"""Pairs of categories; None for all, in order of first appearance; "rest" for each against all others."""


@dataclass(frozen=True)
class Design:
    """Checked inputs. Labels, items and strata are numbers, -1 for none; `labels` says which category a number is."""

    values: Array
    infinite: Labels
    names: list[Hashable]
    labels: list[Hashable]
    category: Index
    item: Index | None
    items: list[Hashable]
    stratum: Index

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        categories: Sequence[Hashable],
        names: Sequence[Hashable],
        pairs: Sequence[Hashable] | None,
        strata: Sequence[Hashable] | None,
    ) -> Design:
        x = np.asarray(values, dtype=np.float64)
        if x.ndim != 2:
            raise InputError(f"values are (example, feature), not of shape {x.shape}")
        for what, given, size in (
            ("categories", categories, len(x)),
            ("pairs", pairs, len(x)),
            ("strata", strata, len(x)),
            ("names", names, x.shape[1]),
        ):
            if given is not None and len(given) != size:
                raise InputError(f"{len(given)} {what} for values of shape {x.shape}; there must be {size}")
        category, labels = numbered(categories)
        if (category < 0).any():
            raise InputError(f"example {int(np.argmax(category < 0))} has no category; leave it out or give it one")
        item, items = (None, []) if pairs is None else numbered(pairs)
        stratum = np.zeros(len(x), dtype=np.int64) if strata is None else numbered(strata)[0]
        if (stratum < 0).any():
            raise InputError(f"example {int(np.argmax(stratum < 0))} has no stratum; leave it out or give it one")
        infinite = np.isinf(x)
        return cls(np.where(infinite, np.nan, x), infinite, list(names), labels, category, item, items, stratum)


def numbered(labels: Sequence[Hashable]) -> tuple[Index, list[Hashable]]:
    """Numbers of labels in order of first appearance, -1 for None and NaN; and the labels."""
    column = pd.Series(list(labels), dtype=object)
    codes, found = pd.factorize(column)
    plain = [each.item() if isinstance(each, np.generic) else each for each in found]  # as they print in an error
    return np.asarray(codes, dtype=np.int64), plain


def contrasted(labels: list[Hashable], between: Between) -> list[tuple[Hashable, Hashable]]:
    """The contrasts to make. InputError: `between` names an unknown category, or one against itself."""
    if between is None:
        return [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    if isinstance(between, str):
        if between != REST:
            raise InputError(f"between is {between!r}; it is pairs of categories, or {REST!r}")
        if REST in labels:
            raise InputError(f"a category is called {REST!r}, which is what all others together are called; rename it")
        return [(a, REST) for a in labels] if len(labels) > 1 else []
    for a, b in between:
        for label in (a, b):
            if label not in labels:
                raise InputError(f"between names category {label!r}; there are {', '.join(map(repr, labels))}")
        if a == b:
            raise InputError(f"between contrasts category {a!r} with itself")
    return list(between)


def check_options(permutations: int, level: float = 0.95) -> None:
    """InputError where an option is out of its range."""
    if permutations < 0:
        raise InputError(f"permutations is {permutations}; it is a number from 0")
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it lies between 0 and 1, such as 0.95")


def in_mixed_blocks(label: NDArray[Any], block: Index) -> Labels:
    """Which examples are in a block that holds two labels or more; no others say anything about a difference."""
    size = int(block.max(initial=0)) + 1
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, block, label)
    np.maximum.at(high, block, label)
    return np.asarray((low < high)[block])


def no_item_twice(data: Design, rows: Index) -> None:
    """InputError where an item has two examples in one category and stratum: which is the partner cannot be told."""
    assert data.item is not None
    keys = pd.DataFrame({"item": data.item, "category": data.category, "stratum": data.stratum}).iloc[rows]
    twice = keys[(keys["item"] >= 0) & keys.duplicated()]
    if len(twice):
        item, category = data.items[twice["item"].iloc[0]], data.labels[twice["category"].iloc[0]]
        raise InputError(
            f"pair {item!r} occurs twice in category {category!r}; an item has one example in each category"
        )


def pair_up(x: Array, first: Labels, stratum: Index, item: Index) -> tuple[Array | None, int]:
    """(2 item, feature) the first side of every complete pair, then the second; and how many examples are in none.

    A side is the mean of its examples within a stratum, and the mean of that over the strata that hold both sides.
    """
    keys = pd.DataFrame({"item": item, "stratum": stratum, "first": first})
    keys = keys[keys["item"] >= 0]
    both = keys.groupby(["item", "stratum"])["first"].transform("nunique") == 2
    keys = keys[both]
    if keys.empty:
        return None, len(x)
    count = keys.groupby(["item", "stratum", "first"])["first"].transform("size")
    strata = keys.groupby("item")["stratum"].transform("nunique")
    number, found = pd.factorize(keys["item"])
    side = number + np.where(keys["first"], 0, len(found))
    weights = (1 / (count * strata)).to_numpy(dtype=np.float64)
    mean = sparse.csr_array((weights, (side, keys.index.to_numpy())), shape=(2 * len(found), len(x)))
    return np.asarray(mean @ x, dtype=np.float64), len(x) - len(keys)
