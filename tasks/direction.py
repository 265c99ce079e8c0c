"""Whether categories lie apart in a space of many dimensions, where no single figure need differ.

Three statistics on vectors, each with a permutation p. The held-out AUROC of the difference of means asks for a
direction along which categories are shifted. The maximum mean discrepancy (MMD) with a Gaussian kernel asks for any
difference between distributions; in hundreds of dimensions it sees little but their means, so the distance of second
moments asks for another covariance, such as a rotation with equal means leaves. All need only the Gram matrix of the
examples: the width of the vectors is paid for once, and relabelling costs products of (example, example) matrices.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse, special, stats
from sklearn.model_selection import StratifiedGroupKFold

from crosslens.adapters.errors import InputError

from .design import check_options, in_mixed_blocks, numbered
from .permutation import Array, Index, Labels
from .statistics import q_values

CHUNK = 2**22  # elements of one matrix


@dataclass(frozen=True)
class Direction:
    """What the two tests found. Figures that could not be had are NaN, and `note` says why.

    Attributes:
        auroc: held out; 0.5 is chance. Of more than two categories, the mean over pairs of them (Hand and Till 2001,
            doi:10.1023/A:1010920819831).
        auroc_low, auroc_high: 95 % interval, from the variance of cross-validated AUROC of LeDell, Petersen and van der
            Laan 2015 (doi:10.1214/15-EJS1035), groups as units; that of the directions that were found, not of redrawn
            training sets. NaN for more than two categories.
        p_auroc: one-sided permutation p.
        mmd: unbiased squared maximum mean discrepancy, mean over pairs of categories; about 0 where nothing differs.
        covariance: the same with the kernel (x y)^2: unbiased squared Frobenius distance of second moments about the
            mean of all examples, as in Li and Chen 2012 (doi:10.1214/12-AOS993).
        p_mmd, p_covariance: permutation p.
        p: of all three tests together, by Bonferroni.
        n: examples. folds: of the cross-validation.
        note: what was left out.
    """

    auroc: float
    auroc_low: float
    auroc_high: float
    p_auroc: float
    mmd: float
    p_mmd: float
    covariance: float
    p_covariance: float
    n: int
    folds: int
    note: str = ""

    @property
    def p(self) -> float:
        found = [each for each in (self.p_auroc, self.p_mmd, self.p_covariance) if not np.isnan(each)]
        return min(1.0, len(found) * min(found)) if found else np.nan


def direction_test(
    vectors: ArrayLike,
    categories: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    permutations: int = 200,
    folds: int = 5,
    seed: int = 0,
) -> Direction:
    """Test whether categories differ in direction or distribution.

    Every coordinate is first centred and divided by its standard deviation over all examples, labels unseen, so that a
    few huge coordinates, as residual streams have, do not decide alone. Then

    - direction: in each fold, the difference of the means of the other folds; the held-out examples are ordered by
      their product with it, and the AUROC is over all pairs of categories' examples within a fold. Where groups hold
      several categories each (a story with one word changed) vectors are first taken from their group's mean, so that
      what the group shares is not noise.
    - distribution: squared MMD with a Gaussian kernel whose width is the median distance of all examples (Gretton et
      al. 2012, JMLR 13:723), and with the quadratic kernel, which is the distance of second moments.

    Args:
        vectors: (example, d) finite.
        categories: of each example; two or more.
        groups: item of each example; None for one of its own. No group is in two folds. Labels are permuted within
            groups that hold several categories, and groups of one category are then left out; if each holds only one,
            groups are relabelled as wholes.
        permutations: number of random relabellings; 0 for no p values.
        folds: at most; fewer where the smallest category has fewer examples (or groups).

    Raises:
        InputError: vectors are not a finite matrix, lengths differ, an option is out of range, or there are fewer than
            two categories.
    """
    plan = _Plan.of(categories, groups, permutations, folds, seed)
    return plan.test(_matrix(vectors, plan.kept))[0]


def direction_tests(
    vectors: Mapping[Hashable, ArrayLike],
    categories: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    permutations: int = 200,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """`direction_test` at many sites, with the same folds and relabellings at each: one row a site.

    Args:
        vectors: by site, (example, d), the same examples in the same order; d may differ.

    Returns:
        A frame: site, the figures of `Direction`, p, the max-T adjusted p_maxt_auroc, p_maxt_mmd and
        p_maxt_covariance over all sites (single step; the last two in standard deviations of their own relabellings),
        and q_bh and q_by of p.

    Raises:
        InputError: as `direction_test`; the text names the site.
    """
    plan = _Plan.of(categories, groups, permutations, folds, seed)
    rows, drawn = [], []
    for site, given in vectors.items():
        try:
            found, statistics = plan.test(_matrix(given, plan.kept))
        except InputError as error:
            raise InputError(f"{site}: {error}") from error
        rows.append({"site": site, **vars(found), "p": found.p})
        drawn.append(statistics)
    table = pd.DataFrame(rows)
    if not rows:
        return table
    for at, name in enumerate(("auroc", "mmd", "covariance")):
        statistic = np.stack([each[at] for each in drawn])
        if name != "auroc":
            spread = statistic.std(axis=1, keepdims=True)
            statistic = (statistic - statistic.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        table[f"p_maxt_{name}"] = _max_t(statistic, permutations)
    return table.assign(q_bh=q_values(table["p"], "bh"), q_by=q_values(table["p"], "by"))


def _max_t(found: Array, permutations: int) -> Array:
    """(site,) adjusted p of statistics (site, relabelling), of which column 0 is as observed."""
    p = np.full(len(found), np.nan)
    usable = ~np.isnan(found).any(axis=1)
    if permutations and usable.any():
        top = found[usable].max(axis=0)
        p[usable] = (top >= found[usable, :1] - 1e-9).mean(axis=1)
    return p


def _matrix(vectors: ArrayLike, kept: Labels) -> Array:
    x = np.asarray(vectors, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(kept):
        raise InputError(f"vectors are (example, d) for {len(kept)} examples, not of shape {x.shape}")
    wrong = ~np.isfinite(x).all(axis=1)
    if wrong.any():
        raise InputError(f"the vector of example {int(np.argmax(wrong))} has NaN or infinite elements; leave it out")
    return x[kept]


@dataclass(frozen=True)
class _Plan:
    """Labels and folds of every relabelling, the first as observed: what is the same at every site."""

    kept: Labels  # example, of those given
    k: int
    unit: Index  # example: its group
    within: bool  # groups hold several categories
    labels: Index  # relabelling, example
    fold: Index  # relabelling, example
    folds: int
    members: list[list[tuple[Index, Labels]]]  # fold, category: relabelling, which examples
    counts: Array  # category, category, relabelling: pairs of examples, none of one group
    permutations: int
    notes: list[str]

    @classmethod
    def of(
        cls,
        categories: Sequence[Hashable],
        groups: Sequence[Hashable] | None,
        permutations: int,
        folds: int,
        seed: int,
    ) -> _Plan:
        check_options(permutations)
        if folds < 2:
            raise InputError(f"folds is {folds}; it takes two or more to hold examples out")
        label, names = numbered(categories)
        n, k = len(label), len(names)
        if (label < 0).any() or k < 2:
            raise InputError(f"{k} categories, {int((label < 0).sum())} examples without one; it takes two or more")
        if groups is not None and len(groups) != n:
            raise InputError(f"{len(groups)} groups for {n} examples")
        unit = np.full(n, -1) if groups is None else numbered(groups)[0]
        unit = np.where(unit < 0, unit.max() + 1 + np.arange(n), unit)
        mixed = in_mixed_blocks(label, unit)
        within = bool(mixed.any())
        kept = mixed if within else np.ones(n, dtype=np.bool_)
        label, unit, n = label[kept], np.unique(unit[kept], return_inverse=True)[1], int(kept.sum())
        notes = [] if kept.all() else [f"{(~kept).sum()} examples whose group has one category left out"]
        held = np.zeros((unit.max() + 1, k), dtype=np.bool_)
        held[unit, label] = True
        smallest = int(held.sum(axis=0).min())
        folds = min(folds, smallest)
        if smallest < 2:
            notes.append(f"{names[int(held.sum(axis=0).argmin())]} has fewer than two groups, so none can be held out")
        fold = np.zeros(n, dtype=np.int64)
        if folds > 1:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # uneven categories; each is in as many folds as can be
                for at, (_, test) in enumerate(splitter.split(np.zeros(n), label, unit)):
                    fold[test] = at
        rng = np.random.default_rng(seed)
        if within:  # the folds are those of whole groups, whatever their labels
            order = np.argsort(unit, kind="stable")
            drawn = np.argsort(rng.random((permutations, n)) + unit[order], axis=1)
            labels = np.empty((permutations + 1, n), dtype=np.int64)
            labels[0], labels[1:, order] = label, label[order][drawn]
            every = np.broadcast_to(fold, labels.shape)
        else:  # folds follow labels, which they were balanced for, so that each relabelling is as good as the first
            first = np.unique(unit, return_index=True)[1]
            moved = np.argsort(rng.random((permutations, len(first))), axis=1)
            moved = np.concatenate([np.arange(len(first))[None], moved])
            labels, every = label[first][moved][:, unit], fold[first][moved][:, unit]
        members = [[_members((every == at) & (labels == c)) for c in range(k)] for at in range(folds)]
        own = sparse.csr_array((np.ones(n), (unit, np.arange(n))))
        by_unit = [own @ (labels == c).T.astype(np.float64) for c in range(k)]  # unit, relabelling
        counts = np.array([[u.sum(0) * v.sum(0) - (u * v).sum(0) for v in by_unit] for u in by_unit])
        return cls(
            kept, k, unit, within, labels, np.ascontiguousarray(every), folds, members, counts, permutations, notes
        )

    def test(self, x: Array) -> tuple[Direction, tuple[Array, Array, Array]]:
        """The result, and the three statistics under every relabelling."""
        x = x - x.mean(axis=0)
        spread = x.std(axis=0)
        varies = spread > 1e-12 * np.abs(x).max(initial=0)
        x = x[:, varies] / spread[varies]
        notes = [*self.notes] if varies.any() else [*self.notes, "all vectors are equal"]
        shifted = x - _group_means(x, self.unit) if self.within else x
        scores = self._scores(shifted @ shifted.T)
        areas = self._areas(scores)
        gram = x @ x.T
        mmd, covariance = self._distances(_gaussian(gram)), self._distances(gram**2)
        low, high = self._interval(scores[0], float(areas[0]))
        found = Direction(
            auroc=float(areas[0]),
            auroc_low=low,
            auroc_high=high,
            p_auroc=self._p(areas),
            mmd=float(mmd[0]),
            p_mmd=self._p(mmd),
            covariance=float(covariance[0]),
            p_covariance=self._p(covariance),
            n=len(x),
            folds=self.folds,
            note="; ".join(notes),
        )
        return found, (areas, mmd, covariance)

    def _p(self, found: Array) -> float:
        if not self.permutations or np.isnan(found[0]):
            return np.nan
        return float((found >= found[0] - 1e-9 * max(1e-3, abs(found[0]))).mean())

    def _scores(self, gram: Array) -> Array:
        """(relabelling, category, example) product of each held-out example with each mean of the other folds."""
        found = np.full((len(self.labels), self.k, len(gram)), np.nan)
        if self.folds < 2:
            return found
        for at in range(self.folds):
            for c in range(self.k):
                train = ((self.labels == c) & (self.fold != at)).astype(np.float64)
                with np.errstate(divide="ignore", invalid="ignore"):
                    score = train @ gram / train.sum(axis=1, keepdims=True)
                held = self.fold == at
                found[:, c][held] = score[held]
        return found

    def _areas(self, scores: Array) -> Array:
        """(relabelling,) AUROC, mean over pairs of categories."""
        found, pairs = np.zeros(len(scores)), self.k * (self.k - 1) / 2
        for a in range(self.k):
            for b in range(a + 1, self.k):
                along, wins, chances = scores[:, a] - scores[:, b], np.zeros(len(scores)), np.zeros(len(scores))
                for held in self.members:
                    won, of = _wins(along, held[a], held[b])
                    wins, chances = wins + won, chances + of
                with np.errstate(divide="ignore", invalid="ignore"):
                    found += wins / chances / pairs
        return found

    def _interval(self, scores: Array, area: float) -> tuple[float, float]:
        if self.k > 2 or np.isnan(area):
            return np.nan, np.nan
        along, label, fold = scores[0] - scores[1], self.labels[0], self.fold[0]
        place, total = np.zeros(len(along)), 0.0
        for at in range(self.folds):
            one, two = np.flatnonzero((fold == at) & (label == 0)), np.flatnonzero((fold == at) & (label == 1))
            against = along[one][:, None] - along[two]
            better = (against > 0) + 0.5 * (against == 0) - area
            place[one], place[two] = better.sum(axis=1), better.sum(axis=0)
            total += better.size
        units = np.bincount(self.unit, weights=place)
        m = np.count_nonzero(np.bincount(self.unit))
        se = np.sqrt((units**2).sum() * m / (m - 1)) / total
        if not 0 < area < 1:
            edge = 0.025 ** (1 / min(np.bincount(label)))
            return (edge, 1.0) if area >= 1 else (0.0, 1 - edge)
        reach = stats.norm.ppf(0.975) * se / (area * (1 - area))
        return float(special.expit(special.logit(area) - reach)), float(special.expit(special.logit(area) + reach))

    def _distances(self, kernel: Array) -> Array:
        """(relabelling,) unbiased squared MMD, mean over pairs of categories; no example is held to its own group."""
        kernel = np.where(self.unit[:, None] == self.unit, 0.0, kernel)
        found, pairs = np.zeros(len(self.labels)), self.k * (self.k - 1) / 2
        for a in range(self.k):
            reach = (self.labels == a) @ kernel
            for b in range(a, self.k):
                with np.errstate(divide="ignore", invalid="ignore"):
                    mean = (reach * (self.labels == b)).sum(axis=1) / self.counts[a, b]
                found += mean * ((self.k - 1 if a == b else -2) / pairs)
        return found


def _gaussian(gram: Array) -> Array:
    """Kernel whose width is the median distance, from the Gram matrix."""
    squared = np.maximum(np.diagonal(gram)[:, None] + np.diagonal(gram) - 2 * gram, 0)
    apart = squared[np.triu_indices(len(gram), 1)]
    median = np.median(apart[apart > 0]) if (apart > 0).any() else 1.0
    return np.asarray(np.exp(-squared / (2 * median)))


def _group_means(x: Array, unit: Index) -> Array:
    member = sparse.csr_array((np.ones(len(x)), (unit, np.arange(len(x)))))
    means = (member @ x) / np.asarray(member.sum(axis=1)).reshape(-1, 1)
    return np.asarray(means[unit], dtype=np.float64)


def _members(chosen: Labels) -> tuple[Index, Labels]:
    """Indices of the chosen examples of each row, and which of them are: rows with fewer are filled up."""
    count = chosen.sum(axis=1)
    index = np.argsort(~chosen, axis=1, kind="stable")[:, : count.max(initial=0)]
    return index, np.arange(index.shape[1]) < count[:, None]


def _wins(along: Array, one: tuple[Index, Labels], two: tuple[Index, Labels]) -> tuple[Array, Array]:
    """Of each row, how many pairs of examples have the first above the second, ties half; and how many pairs."""
    (i, has_i), (j, has_j) = one, two
    a, b = np.take_along_axis(along, i, axis=1), np.take_along_axis(along, j, axis=1)
    has_i, has_j = has_i & ~np.isnan(a), has_j & ~np.isnan(b)
    a, b = np.where(has_i, a, -np.inf), np.where(has_j, b, np.inf)  # what is not there wins nothing
    wins, step = np.empty(len(along)), max(1, CHUNK // max(1, i.shape[1] * j.shape[1]))
    for at in range(0, len(along), step):
        u, v = a[at : at + step, :, None], b[at : at + step, None, :]
        wins[at : at + step] = np.count_nonzero(u > v, axis=(1, 2)) + np.count_nonzero(u == v, axis=(1, 2)) / 2
    return wins, has_i.sum(axis=1) * has_j.sum(axis=1)
