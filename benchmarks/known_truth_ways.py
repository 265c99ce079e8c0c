"""Ways to find where in a network two categories differ, all given the same figures and vectors of the same examples.

Each ranks the places that were watched, and declares those at which it holds a difference for shown, so that where
there is none it declares any with probability `LEVEL` at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from sklearn.model_selection import StratifiedKFold

from crosslens.tasks.permutation import relabellings
from crosslens.tasks.statistics import contrasts

COMGRA = ("mean", "abs_mean", "sd", "abs_max")
"""comgra's figures of a tensor."""
LEVEL = 0.05
OURS = "crosslens"
WAYS = {
    OURS: "figures and directions: ranked by the smaller of their p, then by the better of their ranks; declared by "
    "either at half the level",
    "crosslens: figures": "of `contrasts`: ranked as `ranking` ranks, declared by p_maxt",
    "crosslens: figures, q_by": "the same ranking, declared by q_by, which controls the false discovery rate",
    "crosslens: directions": "of `directions`: ranked by p, then AUROC; declared by the max-T p of its three tests",
    "comgra's figures": "its four figures of each tensor, with the effect sizes of this package and Welch's test; "
    "Bonferroni",
    "t test of each neuron": "Welch's test of each unit's mean over the tokens; the smallest p; Bonferroni",
    "linear probe": "ridge regression on mean vectors: held-out AUROC in 5 folds; declared by its max-T permutation p",
}

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Observed:
    """What was recorded of examples, or steps, of two categories.

    Attributes:
        places: what is ranked, in the order of execution.
        contrasts: what `contrasts` of a comparison or a recorder gave, with a column `site` that holds places.
        directions: what `direction_tests` gave, by site; empty where it could not be had.
        names: (place, figure) of each column of `values`.
        values: (example, feature) figures, with comgra's four and `nan` at every place.
        vectors: by place, (example, unit) mean over the tokens; may hold NaN.
        sick: (example,) which are of the planted category.
    """

    places: Sequence[str]
    contrasts: pd.DataFrame
    directions: pd.DataFrame
    names: Sequence[tuple[str, str]]
    values: Array
    vectors: Mapping[str, Array]
    sick: Labels


@dataclass(frozen=True)
class Found:
    """What a way made of it.

    Attributes:
        scores: (place,) larger where it sees more.
        declared: (place,) where it holds a difference for shown, at `LEVEL` over all places.
    """

    scores: Array
    declared: Labels


def found_by_all(seen: Observed, permutations: int, seed: int) -> dict[str, Found]:
    """Each of `WAYS`."""
    figures, directions = by_figures(seen), by_directions(seen)
    vectors = {place: np.nan_to_num(seen.vectors[place], nan=0.0) for place in seen.places}
    found = (
        _either(figures, directions),
        figures.found,
        Found(figures.scores, _at_places(seen.contrasts, seen.contrasts["q_by"] < LEVEL, seen.places)),
        directions.found,
        by_comgra(seen),
        by_neurons(vectors, seen.sick),
        by_probe(vectors, seen.sick, permutations, seed),
    )
    return dict(zip(WAYS, found, strict=True))


@dataclass(frozen=True)
class Ranked:
    """(place,) scores, and p that are adjusted for all places."""

    scores: Array
    p: Array

    @property
    def found(self) -> Found:
        """At the whole level."""
        return Found(self.scores, self.p < LEVEL)


def by_figures(seen: Observed) -> Ranked:
    """Of each place the figure with the largest bound of |g|, then the largest |g|; the smallest p_maxt."""
    smallest = seen.contrasts["p_maxt"].fillna(1.0).groupby(seen.contrasts["site"]).min()
    return Ranked(_scores(seen.contrasts, seen.places), smallest.loc[list(seen.places)].to_numpy(dtype=np.float64))


def by_directions(seen: Observed) -> Ranked:
    """By p of the three tests, then by held-out AUROC; p of the three, max-T adjusted, by Bonferroni."""
    if not len(seen.directions):  # no finite vector in one category
        return Ranked(np.zeros(len(seen.places)), np.ones(len(seen.places)))
    found = seen.directions.set_index("site").loc[list(seen.places)]
    adjusted = found[["p_maxt_auroc", "p_maxt_mmd", "p_maxt_covariance"]]
    p = np.minimum(1.0, adjusted.min(axis=1).fillna(1.0).to_numpy(dtype=np.float64) * adjusted.shape[1])
    return Ranked(_ranked(list(zip(-found["p"].fillna(1.0), found["auroc"].fillna(0.5), strict=True))), p)


def _either(one: Ranked, other: Ranked) -> Found:
    best = np.maximum(stats.rankdata(one.scores), stats.rankdata(other.scores))
    p = np.minimum(one.p, other.p)
    return Found(_ranked(list(zip(-p, best, strict=True))), p < LEVEL / 2)


def by_comgra(seen: Observed) -> Found:
    """The best that comgra's figures allow: their Hedges' g as above, and Welch's t test with Bonferroni's correction.

    comgra tests nothing and knows no padding: it is given each text alone, and its figures the tests of this package.
    A tensor with NaN has NaN for all four, which is told apart from numbers in the other category.
    """
    columns = {name: i for i, name in enumerate(seen.names)}
    names = [(place, figure) for place in seen.places for figure in COMGRA]
    broken = np.repeat(seen.values[:, [columns[place, "nan"] for place in seen.places]] > 0, len(COMGRA), axis=1)
    values = np.where(broken, np.nan, seen.values[:, [columns[name] for name in names]])
    table = contrasts(values, seen.sick.tolist(), names=names, permutations=0, between=[(False, True)])
    apart = broken[seen.sick].mean(axis=0) != broken[~seen.sick].mean(axis=0)
    table["g"], table["g_low"] = (table[name].mask(apart, np.inf) for name in ("g", "g_low"))
    table["site"] = [place for place, _ in names]
    # Without a p: constant in both categories. Either they differ, and every example tells them apart, or not.
    certain = table["p_welch"].isna() & np.isinf(table["g"].to_numpy(dtype=np.float64))
    p = table["p_welch"].mask(certain | apart, 0.0).fillna(1.0)
    return Found(_scores(table, seen.places), _at_places(table, p * len(names) < LEVEL, seen.places))


def by_neurons(vectors: Mapping[str, Array], sick: Labels) -> Found:
    """The smallest p, which is the largest |t|, of Welch tests of every unit; Bonferroni's over all units."""
    smallest = np.ones(len(vectors))
    for i, x in enumerate(vectors.values()):
        with np.errstate(all="ignore"):
            p = stats.ttest_ind(x[sick], x[~sick], equal_var=False).pvalue
        same = x[sick].mean(axis=0) == x[~sick].mean(axis=0)
        smallest[i] = np.where(np.isnan(p), np.where(same, 1.0, 0.0), p).min()
    tests = sum(x.shape[1] for x in vectors.values())
    return Found(-smallest, smallest * tests < LEVEL)


def by_probe(vectors: Mapping[str, Array], sick: Labels, permutations: int, seed: int) -> Found:
    """AUROC of a ridge regression on the category, held out in 5 folds; declared by its max-T permutation p.

    Of standardised units, with as much penalty as there are units; labels are permuted within folds, so that each
    relabelling is as balanced as the first. The held-out values of all folds are put in one order.
    """
    folds = min(5, int(sick.sum()), int((~sick).sum()))
    fold = np.zeros(len(sick), dtype=np.int64)
    for i, (_, held) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=seed).split(fold, sick)):
        fold[held] = i
    labels = relabellings(sick, fold, permutations, np.random.default_rng(seed))
    y = np.where(labels, 1.0, -1.0).T  # example, relabelling
    grams = np.stack([_gram(x) for x in vectors.values()])  # place, example, example
    held_out = np.empty((len(grams), *y.shape))
    for i in range(folds):
        train, held = fold != i, fold == i
        mean = y[train].mean(axis=0)
        inside = grams[:, train][:, :, train]
        centre = inside.mean(axis=2, keepdims=True)  # the training examples' products with their own mean
        inside = inside - centre - centre.transpose(0, 2, 1) + centre.mean(axis=1, keepdims=True)
        weights = np.linalg.solve(
            inside + np.eye(int(train.sum())), np.broadcast_to(y[train] - mean, (len(grams), *y[train].shape))
        )
        weights -= weights.mean(axis=1, keepdims=True)
        held_out[:, held] = grams[:, held][:, :, train] @ weights - centre.transpose(0, 2, 1) @ weights + mean
    area = areas(held_out, labels)
    top = area.max(axis=0)
    return Found(area[:, 0], (top >= area[:, :1] - 1e-9).mean(axis=1) < LEVEL)


def areas(scores: Array, labels: Labels) -> Array:
    """(..., relabelling) AUROC of scores (..., example, relabelling) for labels (relabelling, example), by ranks."""
    ones = labels.sum(axis=1)
    ranks = (stats.rankdata(scores, axis=-2) * labels.T).sum(axis=-2)
    return np.asarray((ranks - ones * (ones + 1) / 2) / (ones * (labels.shape[1] - ones)), dtype=np.float64)


def _gram(x: Array) -> Array:
    """(example, example) products of standardised units, divided by their number; what is constant counts nothing."""
    x = x - x.mean(axis=0)
    spread = x.std(axis=0)
    x = x / np.where(spread > 1e-12 * np.abs(x).max(initial=0), spread, np.inf)
    return np.asarray(x @ x.T / x.shape[1], dtype=np.float64)


def _scores(table: pd.DataFrame, places: Sequence[str]) -> Array:
    """As `statistics.ranking` orders features, each place by its first; ties share a place."""
    g, low, high = (table[name].to_numpy(dtype=np.float64) for name in ("g", "g_low", "g_high"))
    size = np.nan_to_num(np.abs(g), nan=-1.0, posinf=np.inf)
    bound = np.maximum(0.0, np.nan_to_num(np.maximum(low, -high), nan=0.0, posinf=np.inf))
    at = table["site"].to_numpy()
    return _ranked([max(zip(bound[at == place], size[at == place], strict=True)) for place in places])


def _at_places(table: pd.DataFrame, declared: pd.Series[bool], places: Sequence[str]) -> Labels:
    named = set(table["site"][declared.to_numpy(dtype=np.bool_)])
    return np.array([place in named for place in places])


def _ranked(keys: Sequence[tuple[float, float]]) -> Array:
    """Places in ascending order; equal keys share one."""
    place = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([place[key] for key in keys], dtype=np.float64)
