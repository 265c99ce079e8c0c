"""The loops behind `engine.py`: every figure of a tensor in one read of it, in float64.

A tensor is read row by row: a row lies on the last axis and fits into the processor's first cache, so going over it
again for the central moments costs no second read of memory. Moments of rows are joined by the formulae of Chan et al.
(1979) and Pebay (2008, SAND2008-6212). Numba compiles the loops when they are first needed, and keeps the result.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIELDS = (
    "count", "mean", "m2", "m3", "m4", "abs_sum", "square_sum", "low", "high", "zeros", "nan", "inf", "rows", "norms",
    "entropy",
)  # fmt: skip
"""What is kept of a group of elements; `m2` to `m4` are sums of powers of deviations from `mean`, `norms` and `entropy`
sums over `rows`."""

Array = NDArray[np.float64]


@cache
def reader() -> Any:
    """The compiled loop: (flat data, row offsets (groups, rows), stride, width, mask, its offsets, its stride, entropy,
    out (groups, fields)) -> None."""
    import numba

    # sums may be taken in any order, so that they run on all lanes; NaN and infinity keep their meaning
    fast = {"reassoc", "contract", "nsz"}

    @numba.njit(cache=True, fastmath=fast, nogil=True)
    def plain_row(data, start, stride, width, part):  # type: ignore[no-untyped-def]
        """Figures of a row without a mask; False if not all of it is finite."""
        total = absolute = square = 0.0
        low = high = data[start]
        zeros = 0
        for i in range(width):
            x = data[start + i * stride]
            low = min(low, x)
            high = max(high, x)
            zeros += x == 0
        for i in range(width):
            y = np.float64(data[start + i * stride])
            total += y
            absolute += abs(y)
            square += y * y
        if not math.isfinite(absolute):
            return False
        mean = total / width
        m2 = m3 = m4 = 0.0
        for i in range(width):
            d = np.float64(data[start + i * stride]) - mean
            d2 = d * d
            m2 += d2
            m3 += d2 * d
            m4 += d2 * d2
        part[0], part[1], part[2], part[3], part[4] = width, mean, m2, m3, m4
        part[5], part[6], part[7], part[8], part[9] = absolute, square, low, high, zeros
        part[10] = part[11] = 0
        return True

    @numba.njit(cache=True, nogil=True)
    def careful_row(data, start, stride, width, mask, mask_start, mask_stride, part):  # type: ignore[no-untyped-def]
        """The same with a mask, and where some of it is not finite."""
        total = absolute = square = 0.0
        low, high = np.inf, -np.inf
        count = zeros = nans = infs = 0
        for i in range(width):
            if mask[mask_start + i * mask_stride]:
                y = np.float64(data[start + i * stride])
                if math.isfinite(y):
                    count += 1
                    total += y
                    absolute += abs(y)
                    square += y * y
                    low, high = min(low, y), max(high, y)
                    zeros += y == 0
                elif math.isnan(y):
                    nans += 1
                else:
                    infs += 1
        mean = total / count if count else 0.0
        m2 = m3 = m4 = 0.0
        for i in range(width):
            if mask[mask_start + i * mask_stride]:
                y = np.float64(data[start + i * stride])
                if math.isfinite(y):
                    d = y - mean
                    m2 += d * d
                    m3 += d * d * d
                    m4 += d * d * d * d
        part[0], part[1], part[2], part[3], part[4] = count, mean, m2, m3, m4
        part[5], part[6], part[7], part[8], part[9] = absolute, square, low, high, zeros
        part[10], part[11] = nans, infs

    @numba.njit(cache=True, nogil=True)
    def entropy_of(data, start, stride, width, mask, mask_start, mask_stride):  # type: ignore[no-untyped-def]
        total = 0.0
        for i in range(width):
            if mask[mask_start + i * mask_stride]:
                y = np.float64(data[start + i * stride])
                if y > 0 and math.isfinite(y):
                    total -= y * math.log(y)
        return total

    @numba.njit(cache=True, nogil=True)
    def read(data, offsets, stride, width, mask, mask_offsets, mask_stride, entropy, out):  # type: ignore[no-untyped-def]
        part = np.zeros(15)
        for g in range(offsets.shape[0]):
            for r in range(offsets.shape[1]):
                start, at = offsets[g, r], mask_offsets[g, r]
                whole = mask_stride == 0 and mask[at]
                if mask_stride == 0 and not whole:
                    continue
                if not (whole and plain_row(data, start, stride, width, part)):
                    careful_row(data, start, stride, width, mask, at, mask_stride, part)
                part[12] = 1.0 if part[0] + part[10] + part[11] > 0 else 0.0
                part[13] = math.sqrt(part[6])
                part[14] = entropy_of(data, start, stride, width, mask, at, mask_stride) if entropy else 0.0
                join(out[g], part)

    join = numba.njit(cache=True, nogil=True)(join_into)
    return read


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


def empty(groups: int) -> Array:
    """(groups, fields) of no elements."""
    out = np.zeros((groups, len(FIELDS)))
    out[:, 7], out[:, 8] = np.inf, -np.inf
    return out
