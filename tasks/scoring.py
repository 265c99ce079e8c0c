"""How far a backend's result is from the reference, in units of what rounding can do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import Result, Score
from .effects import rank_agreement, rounding


def judged(
    result: Result, reference: Result, scales: Mapping[str, ArrayLike], dtype: str, *, ranking: str, effect: float,
    growth: float = 1.0,
) -> Score:  # fmt: skip
    """The score of a result whose figures each have a scale that their rounding goes by.

    Args:
        result, reference: named arrays; where the reference is NaN the result must be too.
        scales: of each array to be compared, broadcast against it: rounding moves a figure by `noise` x scale.
        dtype: of the model that made the result, such as `float32`.
        ranking: the array whose order the task is about; figures below their noise are not ranked.
        effect: size of the reference effect, relative to the same scale.
        growth: how many times more rounding goes into a figure than into one of a single forward.

    Raises:
        KeyError: the result lacks an array.
    """
    noise = growth * rounding(dtype)
    absolute = relative = 0.0
    for name, scale in scales.items():
        error = difference(result[name], reference[name])
        with np.errstate(invalid="ignore"):
            apart = np.where(error == 0, 0.0, error / np.asarray(scale, dtype=np.float64))
        absolute, relative = max(absolute, float(error.max())), max(relative, float(apart.max()))
    ranked = np.abs(reference[ranking]) > noise * np.asarray(scales[ranking], dtype=np.float64)
    return Score(
        max_abs_error=absolute,
        max_rel_error=relative,
        rank_agreement=rank_agreement(np.nan_to_num(result[ranking][ranked]), reference[ranking][ranked]),
        effect=effect / noise,
        noise=noise,
        right=bool(relative <= noise),
    )


def difference(ours: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Absolute; 0 where both are NaN or the same infinity, infinite where only one is or the shapes differ."""
    if ours.shape != right.shape:
        return np.array([np.inf])
    with np.errstate(invalid="ignore"):
        error = np.where((ours == right) | (np.isnan(ours) & np.isnan(right)), 0.0, np.abs(ours - right))
    return np.where(np.isnan(error), np.inf, error)
