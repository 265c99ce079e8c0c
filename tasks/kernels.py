"""What is kept of the elements of a tensor, in float64, so that any two parts of it join to the whole.

Moments join by the formulae of Chan et al. (1979) and Pebay (2008, SAND2008-6212).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FIELDS = (
    "count", "mean", "m2", "m3", "m4", "abs_sum", "square_sum", "low", "high", "zeros", "nan", "inf", "rows", "norms",
    "entropy",
)  # fmt: skip
"""What is kept of a group of elements; `m2` to `m4` are sums of powers of deviations from `mean`, `norms` and `entropy`
sums over `rows`."""

Array = NDArray[np.float64]


def join_into(a: Array, b: Array) -> None:
    """Make `a`, fields of one group, those of the elements of `a` and `b` together."""
    n = a[0] + b[0]
    if b[0] > 0 and a[0] == 0:
        for i in range(1, 5):
            a[i] = b[i]
    elif b[0] > 0:
        d, p, q = b[1] - a[1], a[0], b[0]
        dn = d / n
        a[4] += b[4] + d * dn * dn * dn * p * q * (p * p - p * q + q * q)
        a[4] += 6 * dn * dn * (p * p * b[2] + q * q * a[2]) + 4 * dn * (p * b[3] - q * a[3])
        a[3] += b[3] + d * dn * dn * p * q * (p - q) + 3 * dn * (p * b[2] - q * a[2])
        a[2] += b[2] + d * dn * p * q
        a[1] += dn * q
    a[0] = n
    a[5] += b[5]
    a[6] += b[6]
    a[7] = min(a[7], b[7])
    a[8] = max(a[8], b[8])
    for i in range(9, 15):
        a[i] += b[i]


def joined(a: Array, b: Array) -> Array:
    """(..., fields) of the elements of `a` and of `b` together; the same as `join_into`, for any number of them."""
    out = a + b
    p, q, n = a[..., 0], b[..., 0], out[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.where((p > 0) & (q > 0), b[..., 1] - a[..., 1], 0.0)
        dn = np.where(n > 0, d / n, 0.0)
    out[..., 1] = np.where(p > 0, a[..., 1] + dn * q, b[..., 1])
    out[..., 2] = a[..., 2] + b[..., 2] + d * dn * p * q
    out[..., 3] = a[..., 3] + b[..., 3] + d * dn * dn * p * q * (p - q) + 3 * dn * (p * b[..., 2] - q * a[..., 2])
    out[..., 4] = (
        a[..., 4] + b[..., 4] + d * dn**3 * p * q * (p * p - p * q + q * q)
        + 6 * dn * dn * (p * p * b[..., 2] + q * q * a[..., 2]) + 4 * dn * (p * b[..., 3] - q * a[..., 3])
    )  # fmt: skip
    out[..., 7] = np.minimum(a[..., 7], b[..., 7])
    out[..., 8] = np.maximum(a[..., 8], b[..., 8])
    return out


def empty(groups: int) -> Array:
    """(groups, fields) of no elements."""
    out = np.zeros((groups, len(FIELDS)))
    out[:, 7], out[:, 8] = np.inf, -np.inf
    return out
