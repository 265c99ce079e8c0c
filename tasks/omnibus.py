"""One test over any number of categories, so that five of them do not take ten contrasts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from crosslens.adapters.errors import InputError

from .design import Design, check_options, in_mixed_blocks, no_item_twice
from .permutation import FLAT, Array, Index, blocks, patterns, permutation_p, relabellings
from .statistics import q_values

FIGURES = ("categories", "n", "f", "df1", "df2", "omega2", "p_welch", "p_perm", "p_maxt")
COLUMNS = ("feature", *FIGURES, "q_bh", "q_by", "tested", "note")


def omnibus(
    values: ArrayLike,
    categories: Sequence[Hashable],
    *,
    names: Sequence[Hashable],
    pairs: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether the means of a figure differ between any of its categories: one row a feature.

    Welch's analysis of variance (1951, doi:10.1093/biomet/38.3-4.330), which lets categories differ in variance. With
    items (`pairs`) or strata, of the figures less the mean of their item or stratum, and labels are permuted within it.

    Args:
        As for `contrasts`; pairs and strata not both.

    Returns:
        A frame with `COLUMNS`, empty for fewer than two categories: categories and n, how many took part; f, df1, df2
        and p_welch, of Welch's test (within items or strata f has no reference but permutation, and df2 and p_welch
        are NaN); omega2, the share of variance that the categories explain, less what chance would (from the classical
        F; Hays 1963), negative where that is more; p_perm, p_maxt, q_bh, q_by as for `contrasts`; tested, "unpaired",
        "blocked" or "none". A category with a single figure takes no part.

    Raises:
        InputError: as `contrasts`, or pairs and strata are both given.
    """
    if pairs is not None and strata is not None:
        raise InputError("omnibus takes pairs or strata, not both; contrasts takes both")
    data = Design.of(values, categories, names, pairs, strata)
    check_options(permutations)
    k = len(data.labels)
    if k < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    x, label, block = data.values, data.category, data.stratum
    if data.item is not None:
        no_item_twice(data, np.arange(len(x)))
        if in_mixed_blocks(label[data.item >= 0], data.item[data.item >= 0]).any():
            known = data.item >= 0
            x, label, block = x[known], label[known], data.item[known]
    found = {name: np.full(len(names), np.nan) for name in FIGURES}
    notes, tested = [""] * len(names), np.zeros(len(names), dtype=np.bool_)
    for columns, have in patterns(np.isnan(x)):
        rows = have[in_mixed_blocks(label[have], block[have])]
        n = np.bincount(label[rows], minlength=k)
        rows = rows[(n > 1)[label[rows]]]
        for column in columns.tolist():
            notes[column] = f"{len(data.values) - len(rows)} examples left out" if len(rows) < len(data.values) else ""
        found["n"][columns], found["categories"][columns] = len(rows), (n > 1).sum()
        if (n > 1).sum() > 1:
            tested[columns] = True
            _figures(found, columns, x[np.ix_(rows, columns)], label[rows], block[rows])
    if permutations and tested.any():
        labels = relabellings(label, block, permutations, np.random.default_rng(seed))
        found["p_perm"], found["p_maxt"] = permutation_p(x, labels, block, tested, welch_f)
    table = pd.DataFrame(found).astype({"n": np.int64, "categories": np.int64})
    table.insert(0, "feature", pd.Series(list(names), dtype=object))
    p = table["p_welch"].where(table["p_welch"].notna(), table["p_perm"]).to_numpy(dtype=np.float64)
    how = "blocked" if block.min() < block.max() else "unpaired"
    table = table.assign(
        q_bh=q_values(p, "bh"), q_by=q_values(p, "by"), tested=np.where(tested, how, "none"), note=notes
    )
    return table[list(COLUMNS)]


def _figures(found: dict[str, Array], columns: Index, x: Array, label: Index, block: Index) -> None:
    f, df1, df2 = _welch(_aligned(x, block), label[None])
    blocked = len(np.unique(block)) > 1
    found["f"][columns], found["df1"][columns] = f[0], df1[0]
    if not blocked:
        found["df2"][columns] = df2[0]
        flat = np.any([np.ptp(x[label == j], axis=0) == 0 for j in np.unique(label)], axis=0)
        p = np.where(np.ptp(x, axis=0) == 0, 1.0, np.where(flat, np.nan, stats.f.sf(f[0], df1[0], df2[0])))
        found["p_welch"][columns] = p
    found["omega2"][columns] = _omega2(_aligned(x, block), label, len(np.unique(block)))


def _aligned(x: Array, block: Index) -> Array:
    """Figures less the mean of their block; what is equal within a block becomes exactly 0."""
    order, starts, sizes = blocks(block)
    found = np.empty_like(x)
    y = x[order] - np.repeat(x[order][starts], sizes, axis=0)
    found[order] = y - np.repeat(np.add.reduceat(y, starts, axis=0) / sizes[:, None], sizes, axis=0)
    return found


def _omega2(x: Array, label: Index, levels: int) -> Array:
    groups = [x[label == j] for j in np.unique(label)]
    between = sum(len(each) * (each.mean(axis=0) - x.mean(axis=0)) ** 2 for each in groups)
    within = sum(((each - each.mean(axis=0)) ** 2).sum(axis=0) for each in groups)
    df1, df2 = len(groups) - 1, len(x) - len(groups) - levels + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        error = within / df2
        return np.asarray((between - df1 * error) / (between + within + error), dtype=np.float64)


def welch_f(x: Array, labels: NDArray[Any], block: Index) -> Array:
    """(relabelling, column) Welch's F of figures less the mean of their block, under each row of labels."""
    return _welch(_aligned(x, block), labels)[0]


def _welch(x: Array, labels: NDArray[Any]) -> tuple[Array, Array, Array]:
    """F, df1 and df2, each (relabelling, column); F is 0 where nothing varies."""
    scale = np.sqrt((x * x).mean(axis=0))
    x = x / np.where(scale > 0, scale, 1.0)
    square = x * x
    counts, means, weights = [], [], []
    for j in np.unique(labels):
        member = (labels == j).astype(np.float64)
        n = member.sum(axis=1, keepdims=True)
        mean = member @ x / np.maximum(n, 1)
        var = np.maximum(member @ square - n * mean * mean, 0) / np.maximum(n - 1, 1)
        counts.append(n)
        means.append(mean)
        weights.append(np.where(n > 1, n / np.maximum(var, FLAT), 0.0))  # a flat category weighs much, not infinitely
    total = sum(weights)
    k = sum((n > 1).astype(np.float64) for n in counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        grand = sum(w * m for w, m in zip(weights, means, strict=True)) / total
        between = sum(w * (m - grand) ** 2 for w, m in zip(weights, means, strict=True)) / (k - 1)
        loss = sum((n > 1) * (1 - w / total) ** 2 / np.maximum(n - 1, 1) for n, w in zip(counts, weights, strict=True))
        f = np.nan_to_num(between / (1 + 2 * (k - 2) / (k * k - 1) * loss), nan=0.0)
        return np.asarray(f), np.broadcast_to(k - 1, f.shape), np.asarray((k * k - 1) / (3 * loss))
