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
    """The compiled loop: (flat data, its bits and their `flip` as of `as_bits`, row offsets (groups, rows), stride,
    width, mask, its offsets, its stride, entropy, out (groups, fields)) -> None."""
    import numba

    # sums may be taken in any order, so that they run on all lanes; NaN and infinity keep their meaning
    fast = {"reassoc", "contract", "nsz"}

    @numba.njit(cache=True, nogil=True)
    def extremes(bits, flip, ends):  # type: ignore[no-untyped-def]
        """Smallest and largest of finite floats, of which `bits` are the bits, into `ends`, as bits.

        Signed integers are ordered as the floats are once the bits of negative ones are turned around, all but the
        sign; a loop over integers runs on all lanes, where one over floats has to mind NaN.
        """
        integer = bits.dtype.type
        low = high = integer(bits[0] ^ (flip if bits[0] < 0 else 0))
        for i in range(len(bits)):
            key = integer(bits[i] ^ (flip if bits[i] < 0 else 0))
            low, high = min(low, key), max(high, key)
        ends[0] = low ^ (flip if low < 0 else 0)
        ends[1] = high ^ (flip if high < 0 else 0)

    @numba.njit(cache=True, fastmath=fast, nogil=True)
    def plain_row(row, bits, flip, ends, part):  # type: ignore[no-untyped-def]
        """Figures of a row without a mask; False if not all of it is finite."""
        width = len(row)
        total = absolute = square = 0.0
        zeros = 0
        for i in range(width):
            y = np.float64(row[i])
            total += y
            absolute += abs(y)
            square += y * y
        if not math.isfinite(absolute):
            return False
        for i in range(width):
            zeros += row[i] == 0
        mean = total / width
        m2 = m3 = m4 = 0.0
        for i in range(width):
            d = np.float64(row[i]) - mean
            d2 = d * d
            m2 += d2
            m3 += d2 * d
            m4 += d2 * d2
        extremes(bits, flip, ends)
        floats = ends.view(row.dtype)
        part[0], part[1], part[2], part[3], part[4] = width, mean, m2, m3, m4
        part[5], part[6], part[7], part[8], part[9] = absolute, square, floats[0], floats[1], zeros
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
    def read(data, bits, flip, offsets, stride, width, mask, mask_offsets, mask_stride, entropy, out):  # type: ignore[no-untyped-def]
        part, ends = np.zeros(15), np.empty(2, bits.dtype)
        gathered = np.empty(0 if stride == 1 else width, data.dtype)
        gathered_bits = gathered.view(bits.dtype)
        for g in range(offsets.shape[0]):
            for r in range(offsets.shape[1]):
                start, at = offsets[g, r], mask_offsets[g, r]
                whole = mask_stride == 0 and mask[at]
                if mask_stride == 0 and not whole:
                    continue
                plain = False
                if whole and stride == 1:
                    plain = plain_row(data[start : start + width], bits[start : start + width], flip, ends, part)
                elif whole:
                    for i in range(width):
                        gathered[i] = data[start + i * stride]
                    plain = plain_row(gathered, gathered_bits, flip, ends, part)
                if not plain:
                    careful_row(data, start, stride, width, mask, at, mask_stride, part)
                part[12] = 1.0 if part[0] + part[10] + part[11] > 0 else 0.0
                part[13] = math.sqrt(part[6])
                part[14] = entropy_of(data, start, stride, width, mask, at, mask_stride) if entropy else 0.0
                join(out[g], part)

    join = numba.njit(cache=True, nogil=True)(join_into)
    return read


def as_bits(data: NDArray[Any]) -> tuple[NDArray[Any], Any]:
    """Bits of float32 or float64 as signed integers, and the mask of all of them but the sign."""
    kind = np.int32 if data.dtype == np.float32 else np.int64
    return data.view(kind), np.iinfo(kind).max


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
