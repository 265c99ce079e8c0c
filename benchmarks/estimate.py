"""Ratios of times: how large, and within what 95 % interval; all computed on logarithms.

The unit of replication is the process: samples within one share its memory layout, its clock and its neighbours, so
however many there are, they say nothing of the next process (Kalibera and Jones 2013; Mytkowicz et al. 2009). A process
therefore counts with one figure, the median of its log-ratios, and several have Student's interval. The percentile
bootstrap over processes and samples, which is common, is far too narrow for few of them (Hesterberg 2015);
`coverage.py` shows by how much, and that these intervals hold what they promise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
_RESAMPLES = 10_000
_FEW_TASKS = 5
_ALIKE = 1e-12  # a spread of logarithms that is rounding


@dataclass(frozen=True)
class Estimate:
    """A ratio with its 95 % interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether the interval holds `value`."""
        return self.low <= value <= self.high


def median_ratio(processes: Sequence[NDArray[np.float64]]) -> Estimate:
    """Geometric mean, over processes, of each one's median ratio.

    Args:
        processes: for each process, the ratio of each of its samples.

    Of several processes the interval is Student's, on the logarithms of their medians. Of one it lies between two order
    statistics of its samples (the sign test turned around; Thompson 1936), which assumes no distribution. It covers the
    process's own ratio and says nothing about how processes differ. Fewer than six samples have no such interval at
    95 %; their whole range is given, which covers less (see `level`).
    """
    logs = [np.log(ratios) for ratios in processes]
    if len(logs) == 1:
        return _exp(float(np.median(logs[0])), *_order_statistics(logs[0]))
    medians = np.array([np.median(values) for values in logs])
    return _exp(float(medians.mean()), *_student(medians))


def level(samples: int) -> float:
    """The share of cases in which the interval of one process with so many samples covers, 0 to 1."""
    return 1.0 - 2.0 * float(stats.binom.cdf(_rank(samples) - 1, samples, 0.5))


def quotient(above: Sequence[NDArray[np.float64]], below: Sequence[NDArray[np.float64]]) -> Estimate:
    """One `median_ratio` over another, of other processes.

    With several processes on both sides the interval is Welch's. Otherwise it is made of the two intervals (MOVER; Zou
    and Donner 2008), and covers what they cover: with one process each, not how processes differ.
    """
    if min(len(above), len(below)) > 1:
        sides = [np.array([np.median(np.log(ratios)) for ratios in side]) for side in (above, below)]
        difference = float(sides[0].mean() - sides[1].mean())
        half = _welch(*sides)
        return _exp(difference, difference - half, difference + half)
    a, b = median_ratio(above), median_ratio(below)
    (va, la, ha), (vb, lb, hb) = (tuple(map(math.log, (e.value, e.low, e.high))) for e in (a, b))
    return _exp(va - vb, va - vb - math.hypot(va - la, hb - vb), va - vb + math.hypot(ha - va, vb - lb))


def over_tasks(ratios: Sequence[float], seed: int = 0) -> Estimate:
    """Geometric mean of one ratio a task, as tasks like these would have it.

    Tasks are drawn with replacement, and the interval is the studentised bootstrap's (bootstrap-t; Efron and Tibshirani
    1993, section 12.5), which follows the skew of overheads that are small for most tasks and large for some. Less than
    five tasks are too few to draw from: their interval is Student's. One task has its ratio and nothing around it. The
    same ratios always give the same interval.
    """
    logs, count = np.log(np.asarray(ratios, dtype=np.float64)), len(ratios)
    middle = float(logs.mean())
    if count == 1 or np.ptp(logs) <= _ALIKE:
        return _exp(middle, middle, middle)
    if count < _FEW_TASKS:
        return _exp(middle, *_student(logs))
    drawn = logs[np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))]
    errors = stats.sem(drawn, axis=1)
    usual = errors > _ALIKE  # one task drawn every time has no spread
    low, high = np.quantile((drawn.mean(axis=1) - middle)[usual] / errors[usual], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    spread = float(stats.sem(logs))
    return _exp(middle, middle - float(high) * spread, middle - float(low) * spread)


def best(candidates: Sequence[Estimate | None]) -> int | None:
    """Index of the smallest, where its interval ends below all others begin; None where no two are to be compared."""
    ranked = sorted((c.value, index) for index, c in enumerate(candidates) if c is not None)
    if len(ranked) < 2:
        return None
    first = candidates[ranked[0][1]]
    others = [candidates[index] for _, index in ranked[1:]]
    assert first is not None
    return ranked[0][1] if all(other is not None and first.high < other.low for other in others) else None


def _exp(value: float, low: float, high: float) -> Estimate:
    """From logarithms; a bound beyond what a float holds is 0 or infinite."""
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(each)) for each in (value, low, high)))


def _student(values: NDArray[np.float64]) -> tuple[float, float]:
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * float(stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _welch(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Half of Welch's interval for the difference of two means; scipy's test has none without a spread."""
    parts = np.array([values.var(ddof=1) / len(values) for values in (one, other)])
    if parts.sum() <= _ALIKE**2:
        return 0.0
    freedom = parts.sum() ** 2 / (parts**2 / np.array([len(one) - 1, len(other) - 1])).sum()
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(parts.sum()))


def _order_statistics(values: NDArray[np.float64]) -> tuple[float, float]:
    rank, ordered = _rank(len(values)), np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _rank(samples: int) -> int:
    """How far from either end an interval for the median may begin, and be at 95 % or more; 1 where none is."""
    within = stats.binom.cdf(np.arange(samples), samples, 0.5) <= (1 - LEVEL) / 2
    return max(1, int(within.sum()))
