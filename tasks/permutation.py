"""The effect of a category within blocks, its t value, and what chance alone does to it.

One model serves every design: figure = level of its block + effect of the category, by least squares, with standard
errors that let the categories differ in variance (HC2: MacKinnon and White 1985, doi:10.1016/0304-4076(85)90158-7) and
Satterthwaite's degrees of freedom (Bell and McCaffrey 2002). With one block that is Welch's t test; with pairs as
blocks the paired t test; with the strata of a crossed design a main effect. Labels are permuted within blocks. The
statistic is studentised, so that for large samples the test of the means also holds where the categories differ in
variance alone (Chung and Romano 2013, doi:10.1214/13-AOS1090).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]
Index = NDArray[np.int64]

SAME = 1e-6  # relative: t values this close are a tie, as labels that split the figures alike give
FLAT = 1e-10  # a residual variance below this share of the whole is rounding
ELEMENTS = 2**21  # of one matrix of a chunk


@dataclass(frozen=True)
class Effect:
    """Least-squares effect of being of the first category, by column.

    Attributes:
        difference: the effect; first minus second.
        se: HC2 standard error.
        df: Satterthwaite's degrees of freedom of se.
        sd: residual standard deviation, within blocks and categories.
        sd_df: its degrees of freedom.
        weight: sum of squares of the label within blocks; sd / sqrt(weight) is the standard error for equal variances.
        level: (example, column) the level of each example's block.
    """

    difference: Array
    se: Array
    df: Array
    sd: Array
    sd_df: float
    weight: float
    level: Array


def blocks(block: Index) -> tuple[Index, Index, Index]:
    """Order that sorts examples by block; where each block starts in it; how many it has."""
    order = np.argsort(block, kind="stable")
    _, starts, sizes = np.unique(block[order], return_index=True, return_counts=True)
    return order, starts, sizes


def effect(x: Array, first: Labels, block: Index) -> Effect:
    """Fit finite figures x (example, column).

    Args:
        first: (example,) which are of the first category; two or more are, and two or more are not.
        block: (example,) number of each example's block; every block holds both categories.
    """
    order, starts, sizes = blocks(block)
    x, label = x[order], first[order].astype(np.float64)
    each = np.repeat(1 / sizes, sizes)
    origin = np.repeat(x[starts], sizes, axis=0)  # equal figures then centre to exactly 0
    offset = np.repeat(np.add.reduceat(x - origin, starts, axis=0), sizes, axis=0) * each[:, None]
    centred = x - origin - offset
    g = label - np.repeat(np.add.reduceat(label, starts), sizes) * each
    weight = float(g @ g)
    beta = g @ centred / weight
    residual = centred - np.outer(g, beta)
    residual[np.abs(residual) <= 16 * np.finfo(np.float64).eps * np.abs(centred).max(axis=0)] = 0.0
    room = 1 - each - g * g / weight  # 1 - leverage
    free = np.divide(1, room, out=np.zeros_like(room), where=room > 1e-12)
    se = np.sqrt((g * g * free) @ residual**2) / weight
    sd_df = float(len(x) - len(starts) - 1)
    sd = np.sqrt((residual**2).sum(axis=0) / sd_df)
    variance = [(free * side) @ residual**2 / side.sum() for side in (label, 1 - label)]
    df = _satterthwaite(g, label, free, np.repeat(np.arange(len(sizes)), sizes), sizes, variance)
    level = np.empty_like(x)
    level[order] = origin + offset - np.outer(label - g, beta)
    return Effect(np.asarray(beta), se, df, sd, sd_df, weight, level)


def _satterthwaite(g: Array, label: Array, free: Array, block: Index, sizes: Index, variance: list[Array]) -> Array:
    """2 E(V)^2 / Var(V) of the HC2 variance V = u' residual^2, whose residuals are M times errors of two variances.

    V is a quadratic form with matrix B = M diag(u) M: constant on cells (block, category), but for its diagonal.
    """
    if np.all(sizes == 2):  # pairs: V is that of their differences, which have one variance
        return np.full(variance[0].shape, float(len(sizes) - 1))
    cell, at, count = np.unique(2 * block + label.astype(np.int64), return_index=True, return_counts=True)
    g, u, own = g[at], (g * g * free)[at], cell // 2
    q = (own[:, None] == own) / sizes[own][:, None] + np.outer(g, g) / np.sum(count * g * g)
    off = (q * (count * u)) @ q - q * u - q * u[:, None]
    diagonal = np.diagonal(off)
    trace = count * (u + diagonal)
    square = np.outer(count, count) * off**2 + np.diag(count * (u * u + 2 * u * diagonal))
    side = np.stack([cell % 2 == 1, cell % 2 == 0]).astype(np.float64)
    t, s = side @ trace, side @ square @ side.T
    a, b = variance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((t[0] * a + t[1] * b) ** 2 / (s[0, 0] * a * a + 2 * s[0, 1] * a * b + s[1, 1] * b * b))


def relabellings(label: NDArray[Any], block: Index, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """(relabelling, example) labels permuted within blocks; row 0 is `label` itself.

    All distinct ones where labels are bool and those are no more than `count` + 1, else `count` random ones: with
    either, the share of rows that are at least as extreme as row 0 is a valid p value (Phipson and Smyth 2010,
    doi:10.2202/1544-6115.1585).
    """
    order, starts, sizes = blocks(block)
    own = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.empty((count + 1, len(label)), dtype=label.dtype)
    sorted_ = _all_relabellings(label[order], starts, sizes, count + 1) if label.dtype == np.bool_ else None
    if sorted_ is None:
        drawn = np.argsort(rng.random((count, len(label))) + own, axis=1)
        rows[0], rows[1:, order] = label, label[order][drawn]
        return rows
    rows = rows[: len(sorted_)]
    rows[:, order] = sorted_
    return rows


def _all_relabellings(label: Labels, starts: Index, sizes: Index, limit: int) -> Labels | None:
    """Every distinct way to permute labels, sorted by block, within blocks; None if there are more than `limit`."""
    held = np.add.reduceat(label.astype(np.int64), starts)
    distinct = 1
    for size, ones in zip(sizes.tolist(), held.tolist(), strict=True):
        distinct *= math.comb(size, ones)
        if distinct > limit:
            return None
    places = zip(starts.tolist(), sizes.tolist(), held.tolist(), strict=True)
    choices = [list(itertools.combinations(range(at, at + size), ones)) for at, size, ones in places]
    drawn = np.zeros((distinct, len(label)), dtype=np.bool_)
    for row, chosen in zip(drawn, itertools.product(*choices), strict=True):
        row[list(itertools.chain(*chosen))] = True
    same = int(np.flatnonzero((drawn == label).all(axis=1))[0])
    drawn[[0, same]] = drawn[[same, 0]]
    return drawn


def t_values(x: Array, labels: Labels, block: Index) -> Array:
    """(relabelling, column) t of `effect` under each row of labels, by products of label and figure matrices."""
    order, starts, sizes = blocks(block)
    x, each = x[order], np.repeat(1 / sizes, sizes)
    x = x - np.repeat(x[starts], sizes, axis=0)
    x = x - np.repeat(np.add.reduceat(x, starts, axis=0), sizes, axis=0) * each[:, None]
    scale = np.sqrt((x * x).mean(axis=0))
    x = x / np.where(scale > 0, scale, 1.0)
    square = x * x
    l = labels[:, order].astype(np.float64)  # noqa: E741
    g = l - np.repeat(np.add.reduceat(l, starts, axis=1), sizes, axis=1) * each
    gg = g * g
    weight = gg.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        room = 1 - each - gg / weight
        w = np.where(room > 1e-12, gg / room, 0.0)
        beta = g @ x / weight
        whole = w @ square
        left = whole - 2 * beta * ((w * g) @ x) + beta * beta * (w * gg).sum(axis=1, keepdims=True)
        left[left <= FLAT * whole] = 0.0
        return np.asarray(np.nan_to_num(beta * weight / np.sqrt(left), nan=0.0, posinf=np.inf, neginf=-np.inf))


def patterns(missing: Labels) -> Iterator[tuple[Index, Index]]:
    """Columns that lack the same examples, together: their indices, and the examples that they have."""
    groups: dict[bytes, list[int]] = {}
    for column, packed in enumerate(np.packbits(missing, axis=0).T):
        groups.setdefault(packed.tobytes(), []).append(column)
    for columns in groups.values():
        yield np.asarray(columns), np.flatnonzero(~missing[:, columns[0]])


Statistic = Callable[[Array, NDArray[Any], Index], Array]


def permutation_p(
    x: Array, labels: NDArray[Any], block: Index, tested: Labels, statistic: Statistic = t_values
) -> tuple[Array, Array]:
    """p values of each column alone, and of max-T over all tested columns.

    max-T is Westfall and Young's step-down procedure (1993; algorithm 4.1 of Ge, Dudoit and Speed 2003,
    doi:10.1007/BF02595811): it holds the family-wise error under any dependence between the columns, since a
    relabelling moves all of them together.

    Args:
        x: (example, column), NaN where a figure is missing; a missing figure takes no part.
        labels: (relabelling, example), the first row as observed.
        tested: (column,) which to test; the rest get NaN.
        statistic: (examples, columns), labels, blocks -> (relabelling, column).
    """
    alone, joint = np.full(x.shape[1], np.nan), np.full(x.shape[1], np.nan)
    chosen = np.flatnonzero(tested)
    if not len(chosen):
        return alone, joint
    x = x[:, chosen]
    groups = list(patterns(np.isnan(x)))

    def sizes(rows: NDArray[Any]) -> Array:
        found = np.empty((len(rows), x.shape[1]))
        for columns, have in groups:
            found[:, columns] = np.abs(statistic(x[np.ix_(have, columns)], rows[:, have], block[have]))
        return found

    observed = sizes(labels[:1])[0]
    order = np.argsort(observed, kind="stable")
    bar = observed * (1 - SAME)
    counts, exceeding = np.zeros(len(chosen)), np.zeros(len(chosen))
    step = max(1, ELEMENTS // max(x.shape))
    for at in range(0, len(labels), step):
        found = sizes(labels[at : at + step])
        counts += (found >= bar).sum(axis=0)
        running = np.maximum.accumulate(found[:, order], axis=1)
        exceeding[order] += (running >= bar[order]).sum(axis=0)
    alone[chosen] = counts / len(labels)
    descending = order[::-1]
    joint[chosen[descending]] = np.maximum.accumulate(exceeding[descending] / len(labels))
    return alone, joint
