"""How much categories differ, how far two rankings agree, and how far rounding alone can move a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from crosslens.adapters.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """One category of an attribute against the others, example by example.

    Attributes:
        attribute, category: which.
        n: number of pairs.
        mean, sd: (...) of the category itself over its examples; sd divides by n - 1.
        difference: (...) mean over pairs of (the category - mean of the attribute's other categories).
        spread: (...) standard deviation of those differences, dividing by n - 1.
    """

    attribute: str
    category: str
    n: int
    mean: Array
    sd: Array
    difference: Array
    spread: Array

    @property
    def g(self) -> Array:
        """(...) paired effect size Hedges' g_z: the mean difference in standard deviations of the differences.

        g_z = J(n - 1) * difference / spread, with J of `small_sample_correction`; infinite or NaN where all
        differences are equal. Cohen's d_z: Lakens 2013, doi:10.3389/fpsyg.2013.00863.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return small_sample_correction(self.n - 1) * self.difference / self.spread

    @property
    def p(self) -> Array:
        """(...) two-sided p of the paired t test."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = math.sqrt(self.n) * self.difference / self.spread
        return np.asarray(2 * stats.t.sf(np.abs(t), self.n - 1), dtype=np.float64)


def contrasts(values: Array, design: pd.DataFrame) -> list[Contrast]:
    """Every category of every attribute against the attribute's others, paired.

    Args:
        values: (example, ...) figures.
        design: one row an example, with columns `attribute`, `category` and `pair`; every pair holds every category of
            its attribute once.

    Raises:
        InputError: an attribute has fewer than two categories or pairs, or a pair does not hold each category once.
    """
    found = []
    rows = design.reset_index(drop=True)
    for attribute, group in rows.groupby("attribute", sort=False):
        if group.duplicated(["pair", "category"]).any():
            raise InputError(f"attribute {attribute!r} has a pair that holds a category twice")
        grid = group.reset_index().pivot(index="pair", columns="category", values="index")
        missing = int(grid.isna().to_numpy().sum())
        if missing or min(grid.shape) < 2:
            raise InputError(
                f"attribute {attribute!r} has {grid.shape[0]} pairs of {grid.shape[1]} categories, "
                f"{missing} examples of them missing; it needs two of each, and none missing"
            )
        paired = values[grid.to_numpy(dtype=np.int64)]  # pair, category, ...
        n, k = grid.shape
        for i, category in enumerate(grid.columns):
            own = paired[:, i]
            with np.errstate(invalid="ignore"):  # of an infinite figure nothing but NaN follows
                against = own - (paired.sum(axis=1) - own) / (k - 1)
                sd, spread = own.std(axis=0, ddof=1), against.std(axis=0, ddof=1)
            mean, difference = own.mean(axis=0), against.mean(axis=0)
            found.append(Contrast(str(attribute), str(category), n, mean, sd, difference, spread))
    return found


def small_sample_correction(df: int) -> float:
    """J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df - 1)/2)): removes the upward bias of a standardised difference.

    Exact, not the usual approximation 1 - 3/(4 df - 1): Hedges 1981, doi:10.3102/10769986006002107. NaN at df = 1.
    """
    if df < 2:
        return math.nan
    return float(math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2))


def false_discovery(p: ArrayLike) -> Array:
    """q values over all finite p: Benjamini and Hochberg 1995. NaN stays NaN."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    here = np.isfinite(p)
    if here.any():
        q[here] = stats.false_discovery_control(p[here])
    return q


def rank_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's correlation, -1 to 1; NaN where one of them is constant or there are fewer than two figures."""
    a, b = stats.rankdata(np.ravel(a)), stats.rankdata(np.ravel(b))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def rounding(dtype: str) -> float:
    """By how much rounding alone can move a figure of a whole forward, relative to the figure's scale.

    Each operation rounds by up to half an eps, and a forward of 30 layers piles that up. Against float64, SmolLM2-135M
    in float32 is off by 6 eps in patched logits and by 35 eps in the worst of its key figures, a largest element.

    Args:
        dtype: of the model, such as `float32`.
    """
    return 128 * torch.finfo(getattr(torch, dtype)).eps
