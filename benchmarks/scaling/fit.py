"""Fixed and marginal cost of what grows, and growth by the call, each with a 95 % interval.

A line is fitted to the medians of each process's points by Theil and Sen (Sen 1968): the median of the slopes of all
pairs, and the median of what is left, so that no one point decides. A process counts with one line; of several, the
interval is Student's over processes. Of one it is the percentile bootstrap over the samples of each point, and says
nothing about how processes differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crosslens.benchmarks.estimate import Estimate

Samples = NDArray[np.float64]
_RESAMPLES = 2000
_ENDS = (0.025, 0.975)


@dataclass(frozen=True)
class Line:
    """Cost = fixed + marginal * x, both in the unit of the samples."""

    fixed: Estimate
    marginal: Estimate


def theil_sen(x: Samples, y: Samples) -> tuple[Samples, Samples]:
    """Lines through points: x (points,), y (..., points) -> intercepts (...), slopes (...)."""
    i, j = np.triu_indices(len(x), k=1)
    slopes: Samples = np.median((y[..., j] - y[..., i]) / (x[j] - x[i]), axis=-1)
    return np.median(y - slopes[..., None] * x, axis=-1), slopes


def fit(processes: Sequence[Mapping[int, Samples]], seed: int = 0) -> Line | None:
    """The line of some processes.

    Args:
        processes: for each, x -> its samples of the cost.
        seed: of the bootstrap; the same samples always give the same interval.

    Returns:
        None where fewer than three points are in every process.
    """
    shared = set.intersection(*(set(each) for each in processes)) if processes else set()
    if len(shared) < 3:
        return None
    x = np.array(sorted(shared), dtype=np.float64)
    medians = np.array([[np.median(each[int(at)]) for at in x] for each in processes])
    fixed, marginal = theil_sen(x, medians)
    if len(processes) > 1:
        return Line(student(fixed), student(marginal))
    drawn = np.stack([_medians(processes[0][int(at)], seed + i) for i, at in enumerate(x)], axis=-1)
    many_fixed, many_marginal = theil_sen(x, drawn)
    return Line(_percentiles(fixed[0], many_fixed), _percentiles(marginal[0], many_marginal))


def middle(processes: Sequence[Samples], seed: int = 0) -> Estimate:
    """Of one point: the mean over processes of their medians."""
    medians = np.array([np.median(each) for each in processes])
    if len(processes) > 1:
        return student(medians)
    return _percentiles(float(medians[0]), _medians(processes[0], seed))


def growth(totals: Samples, calls: int, seed: int = 0) -> Estimate:
    """Growth by the call: totals (samples,) that were read every so many calls.

    The interval is the bootstrap's over the increments between them, so that a cache that is filled once counts as one
    increment, and not as a leak.
    """
    increments = np.diff(totals.astype(np.float64)) / calls
    picks = np.random.default_rng(seed).integers(len(increments), size=(_RESAMPLES, len(increments)))
    return _percentiles(float(increments.mean()), increments[picks].mean(axis=1))


def student(values: Samples) -> Estimate:
    """Mean of one value a process, with Student's interval."""
    mean = float(values.mean())
    half = float(stats.t.ppf(_ENDS[1], len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def _medians(samples: Samples, seed: int) -> Samples:
    """(resample,) medians of samples drawn with replacement."""
    picks = np.random.default_rng(seed).integers(len(samples), size=(_RESAMPLES, len(samples)))
    medians: Samples = np.median(samples[picks], axis=1)
    return medians


def _percentiles(value: float, drawn: Samples) -> Estimate:
    low, high = np.quantile(drawn, _ENDS)
    return Estimate(float(value), float(low), float(high))
