"""The median ratio of paired samples and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether the interval holds `value`."""
        return self.low <= value <= self.high


def median_ratio(processes: Sequence[NDArray[np.float64]], seed: int = 0) -> Estimate:
    """Median over processes of each one's median ratio.

    Args:
        processes: for each process, the ratio of each pair of samples.
        seed: of the resampling; the same samples always give the same interval.

    The bootstrap draws processes, then pairs within each (two-stage; Davison and Hinkley 1997, section 3.8). Of one
    process it can only draw pairs: the interval then says nothing about how processes differ.
    """
    draw, count = np.random.default_rng(seed), len(processes)
    # (process, resample, slot): each slot of a resample has its own draw of pairs from the process that it gets
    medians = np.stack([_resampled_medians(ratios, count, draw) for ratios in processes])
    chosen = draw.integers(count, size=(_RESAMPLES, count))
    values = np.median(np.take_along_axis(medians, chosen[None], axis=0)[0], axis=1)
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(np.median([np.median(ratios) for ratios in processes])), float(low), float(high))


def _resampled_medians(ratios: NDArray[np.float64], slots: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """(resample, slot): medians of the pairs of one process, drawn with replacement."""
    picks = draw.integers(len(ratios), size=(_RESAMPLES, slots, len(ratios)))
    medians: NDArray[np.float64] = np.median(ratios[picks], axis=-1)
    return medians
