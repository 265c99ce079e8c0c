"""Two effect sizes with their confidence intervals: Hedges' g and the AUROC. Column by column, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
FAR = 1e3  # beyond this t the noncentral t's inverse loses digits


def correction(df: ArrayLike) -> Array:
    """J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df - 1)/2)), for any shape of df; NaN up to df = 1.

    It removes the upward bias of a standardised difference: Hedges 1981, doi:10.3102/10769986006002107, exactly.
    """
    df = np.asarray(df, dtype=np.float64)
    safe = np.where(df > 1, df, 2.0)
    j = np.exp(special.gammaln(safe / 2) - special.gammaln((safe - 1) / 2)) / np.sqrt(safe / 2)
    return np.asarray(np.where(df > 1, j, np.nan))


def noncentrality(t: ArrayLike, df: ArrayLike, level: float) -> tuple[Array, Array]:
    """Confidence bounds of the noncentrality behind a t value: the noncentral t, inverted by `scipy.special`.

    Steiger and Fouladi 1997 ("Noncentrality interval estimation", in What if there were no significance tests?). Exact
    for normal figures of one variance. NaN where t is not finite or df is not positive.
    """
    t, df = np.broadcast_arrays(np.asarray(t, dtype=np.float64), np.asarray(df, dtype=np.float64))
    usable = np.isfinite(t) & (df > 0)
    bounds = []
    for tail in ((1 + level) / 2, (1 - level) / 2):
        found = np.full(t.shape, np.nan)
        near = usable & (np.abs(t) <= FAR)
        found[near] = special.nctdtrinc(df[near], tail, t[near])
        far = usable & ~near  # nearly all of the uncertainty is that of the standard deviation, a chi variable
        u, v = t[far], df[far]
        spread = u * (np.sqrt(stats.chi2.ppf(np.where(u > 0, 1 - tail, tail), v) / v) - 1)
        found[far] = u + np.sign(0.5 - tail) * np.hypot(spread, stats.norm.ppf(tail))
        bounds.append(found)
    return bounds[0], bounds[1]


def hedges(difference: Array, sd: Array, se: Array, df: Array, level: float) -> tuple[Array, Array, Array]:
    """g = J(df) difference / sd, and the bounds of the standardised difference that it estimates.

    Args:
        difference, sd: of each column; sd is the standardiser.
        se: standard error of the difference as the standardiser has it, so that t = difference / se.
        df: degrees of freedom of the standardiser.
        level: of the interval, such as 0.95.

    Returns:
        g, low, high: 0 with NaN bounds where both difference and sd are 0; infinite, all three, where only sd is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        g = np.where((sd == 0) & (difference == 0), 0.0, correction(df) * difference / sd)
        low, high = noncentrality(difference / se, df, level)
        low, high = low * se / sd, high * se / sd
    return g, np.where(np.isinf(g), g, low), np.where(np.isinf(g), g, high)


def auroc(x: Array, first: NDArray[np.bool_], level: float, *, paired: bool = False) -> tuple[Array, Array, Array]:
    """P(a figure of the first category exceeds one of the second), ties half: estimate and bounds, by column.

    The variance is DeLong's (1988, doi:10.2307/2531595); in a paired design that of clusters of two (Obuchowski 1997,
    doi:10.2307/2533958). The interval is symmetric on the logit scale, so it stays within 0 and 1. Where the
    categories are fully apart that variance is 0; the bound is then Clopper and Pearson's for as many trials as the
    smaller category has examples, all of them successes, which is conservative.

    Args:
        x: (example, column), finite.
        first: (example,) which are of the first category.
        paired: row i of the first category and row i of the second are one pair.
    """
    a, b = x[first], x[~first]
    m, n = len(a), len(b)
    if not m or not n:
        nothing = np.full(x.shape[1], np.nan)
        return nothing, nothing, nothing
    ranks = stats.rankdata(np.concatenate([a, b]), axis=0)
    above = (ranks[:m] - stats.rankdata(a, axis=0)) / n  # share of the second category that each of the first exceeds
    below = 1 - (ranks[m:] - stats.rankdata(b, axis=0)) / m  # share of the first that exceeds each of the second
    found = np.asarray(above.mean(axis=0), dtype=np.float64)
    if min(m, n) < 2:
        return found, np.full_like(found, np.nan), np.full_like(found, np.nan)
    if paired:
        variance = (above + below).var(axis=0, ddof=1) / n
    else:
        variance = above.var(axis=0, ddof=1) / m + below.var(axis=0, ddof=1) / n
    return found, *_logit_interval(found, np.sqrt(variance), min(m, n), level)


def _logit_interval(p: Array, se: Array, trials: int, level: float) -> tuple[Array, Array]:
    inside = (p > 0) & (p < 1)
    q = np.where(inside, p, 0.5)
    reach = stats.norm.ppf((1 + level) / 2) * se / (q * (1 - q))
    low, high = special.expit(special.logit(q) - reach), special.expit(special.logit(q) + reach)
    edge = ((1 - level) / 2) ** (1 / trials)
    return np.where(inside, low, np.where(p >= 1, edge, 0.0)), np.where(inside, high, np.where(p >= 1, 1.0, 1 - edge))
