"""Compiled loops over the memory of a tensor: all its figures in one read of it, in float64.

A tensor is read in chunks that stay in the processor's first cache, so going over one again for its central moments
costs no second read of memory. What lies apart, is masked or is not finite is gathered into such a chunk first.
Import this module where it is used: numba compiles at the first call, and keeps the result on disk where it can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from .kernels import FIELDS, join_into

CHUNK = 2048  # elements
_DIRECT = 512  # a shorter row is joined with its neighbours
_TILE, _ROWS = 512, 16  # units and rows that are read together
_ROOT_HALF = 0x3FE6A09E667F3BCD  # bits of sqrt(1/2)
_LARGEST = np.finfo(np.float64).max

# sums may be taken in any order, so that they run on all lanes; NaN and infinity keep their meaning
_SUMS = {"reassoc", "contract", "nsz"}
_FINITE = {*_SUMS, "nnan", "ninf"}  # for what is known to be finite


def compiled(**options: Any) -> Callable[[Any], Any]:
    """`numba.njit` that lets other threads run, and keeps the code on disk; without that where no folder is writable.

    Only functions of a module are found again on disk: one inside a function is compiled anew by each process.
    """

    def compile(function: Any) -> Any:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no cache locator
            return numba.njit(nogil=True, **options)(function)

    return compile


join = compiled()(join_into)


@compiled(fastmath=_SUMS)
def _sums(x):  # type: ignore[no-untyped-def]
    total = absolute = 0.0
    for i in range(len(x)):
        y = np.float64(x[i])
        total += y
        absolute += abs(y)
    return total, absolute


@compiled(fastmath=_SUMS)
def _squares(x):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(len(x)):
        y = np.float64(x[i])
        total += y * y
    return total


@compiled(fastmath=_SUMS)
def _central(x, mean):  # type: ignore[no-untyped-def]
    m2 = m3 = m4 = 0.0
    for i in range(len(x)):
        d = np.float64(x[i]) - mean
        d2 = d * d
        m2 += d2
        m3 += d2 * d
        m4 += d2 * d2
    return m2, m3, m4


@compiled(fastmath=_FINITE)
def _extremes(x):  # type: ignore[no-untyped-def]
    low = high = x[0]
    zeros = np.int32(0)
    for i in range(len(x)):
        low, high = min(low, x[i]), max(high, x[i])
        zeros += np.int32(x[i] == 0)
    return low, high, zeros


@compiled()
def _moments(x, part):  # type: ignore[no-untyped-def]
    """Figures of a chunk into `part`; False, and nothing there, if its sum is not finite."""
    total, absolute = _sums(x)
    if not math.isfinite(absolute):
        return False
    n = len(x)
    mean = total / n
    m2, m3, m4 = _central(x, mean)
    low, high, zeros = _extremes(x)
    part[0], part[1], part[2], part[3], part[4] = n, mean, m2, m3, m4
    part[5], part[6], part[7], part[8], part[9] = absolute, m2 + n * mean * mean, low, high, zeros
    return True


@compiled(fastmath=_SUMS)
def _entropy(x, scratch):  # type: ignore[no-untyped-def]
    """Sum of -y log y over y > 0, by arithmetic that runs on all lanes, where the library's log does not.

    y = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s) of s = (m - 1) / (m + 1), |s| < 0.172, by its series.
    """
    bits = scratch.view(np.int64)
    total = 0.0
    for i in range(len(x)):
        scratch[i] = np.float64(x[i]) if x[i] > 0 else 1.0
    for i in range(len(x)):
        y = np.float64(x[i]) if x[i] > 0 else 0.0
        e = (bits[i] - _ROOT_HALF) >> 52
        total -= y * (np.float64(e) * math.log(2.0))
        bits[i] -= e << 52
    for i in range(len(x)):
        y = np.float64(x[i]) if x[i] > 0 else 0.0
        s = (scratch[i] - 1.0) / (scratch[i] + 1.0)
        q = s * s
        series = 1 / 15 + q * (1 / 17 + q * (1 / 19 + q * (1 / 21)))
        series = 1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * series)))
        total -= y * 2.0 * s * (1.0 + q * (1 / 3 + q * (1 / 5 + q * series)))
    return total


@compiled()
def _gather(data, start, stride, mask, at, mask_stride, n, row):  # type: ignore[no-untyped-def]
    """Copy the real ones of n elements to `row`; how many they are."""
    if mask_stride == 0:
        if stride == 1:
            row[:n] = data[start : start + n]
        else:
            for i in range(n):
                row[i] = data[start + i * stride]
        return n
    found = 0
    for i in range(n):
        row[found] = data[start + i * stride]
        found += mask[at + i * mask_stride]
    return found


@compiled()
def _finite(row, n, out):  # type: ignore[no-untyped-def]
    """Close up the finite ones of n elements; how many they are. The others are counted in `out`."""
    found = nans = 0
    for i in range(n):
        y = row[i]
        row[found] = y
        found += math.isfinite(y)
        nans += math.isnan(y)
    out[10] += nans
    out[11] += n - found - nans
    return found


@compiled()
def read(data, shape, strides, mask, mask_strides, per_group, entropy, out):  # type: ignore[no-untyped-def]
    """Join the figures of a tensor to those in `out`, (groups, fields).

    Args:
        data: memory from the first element on, float32 or float64.
        shape, strides: of the tensor's axes, in elements; a row is its last axis, and `per_group` rows make a group.
        mask, mask_strides: the same of a bool tensor of that shape; strides may be 0.
        entropy: whether to sum it.
    """
    outer = len(shape) - 1
    width, stride, mask_stride = shape[outer], strides[outer], mask_strides[outer]
    index = np.zeros(outer, np.int64)
    part, scratch = np.zeros(len(FIELDS)), np.empty(CHUNK if entropy else 0)
    buffer = np.empty(CHUNK + 1, data.dtype)  # _gather writes one beyond what it keeps
    direct = stride == 1 and mask_stride == 0 and width >= _DIRECT
    start = at = used = 0
    for g in range(len(out)):
        group = out[g]
        for _ in range(per_group):
            real = mask_stride != 0 or mask[at]
            rows, square, entropies = 0, 0.0, 0.0
            for c in range(0, width if real else 0, CHUNK):
                n = min(CHUNK, width - c)
                if direct:
                    chunk = data[start + c : start + c + n]
                    if _moments(chunk, part):
                        join(group, part)
                        rows = 1
                        square += part[6]
                        if entropy:
                            entropies += _entropy(chunk, scratch)
                        continue
                if used + n > CHUNK:
                    _flush(buffer, used, part, group)
                    used = 0
                row = buffer[used:]
                n = _gather(data, start + c * stride, stride, mask, at + c * mask_stride, mask_stride, n, row)
                rows |= n > 0
                more = _squares(row[:n])
                if not math.isfinite(more):
                    n = _finite(row, n, group)
                    more = _squares(row[:n])
                square += more
                if entropy:
                    entropies += _entropy(row[:n], scratch)
                used += n
            group[12] += rows
            group[13] += math.sqrt(square)
            group[14] += entropies
            for axis in range(outer - 1, -1, -1):
                index[axis] += 1
                start += strides[axis]
                at += mask_strides[axis]
                if index[axis] < shape[axis]:
                    break
                start -= index[axis] * strides[axis]
                at -= index[axis] * mask_strides[axis]
                index[axis] = 0
        _flush(buffer, used, part, group)
        used = 0


@compiled()
def _flush(buffer, used, part, group):  # type: ignore[no-untyped-def]
    if used == 0:
        return
    if not _moments(buffer[:used], part):  # a sum beyond float64
        part[:] = np.nan
        part[0] = used
        part[5] = part[6] = np.inf
        part[7], part[8], part[9] = _extremes(buffer[:used])
    part[10:] = 0.0
    join(group, part)


@compiled()
def read_units(data, shape, strides, mask, mask_strides, count, mean, m2):  # type: ignore[no-untyped-def]
    """Join mean and sum of squared deviations of each unit of the last axis; arguments as of `read`, (units,) each."""
    outer = len(shape) - 1
    units, stride, mask_stride = shape[outer], strides[outer], mask_strides[outer]
    rows = 1
    for axis in range(outer):
        rows *= shape[axis]
    starts, marks = np.empty(_ROWS, np.int64), np.empty(_ROWS, np.int64)
    y, real = np.empty((_ROWS, _TILE)), np.empty((_ROWS, _TILE))
    n, total, spread = np.empty(_TILE), np.empty(_TILE), np.empty(_TILE)
    for first in range(0, rows, _ROWS):
        size = min(_ROWS, rows - first)
        for r in range(size):
            left, starts[r], marks[r] = first + r, 0, 0
            for axis in range(outer - 1, -1, -1):
                starts[r] += left % shape[axis] * strides[axis]
                marks[r] += left % shape[axis] * mask_strides[axis]
                left //= shape[axis]
        for u in range(0, units, _TILE):
            width = min(_TILE, units - u)
            n[:], total[:], spread[:] = 0.0, 0.0, 0.0
            for r in range(size):
                _unit_row(
                    data, starts[r] + u * stride, stride, mask, marks[r] + u * mask_stride, mask_stride, width,
                    y[r], real[r], n, total,
                )  # fmt: skip
            for i in range(width):
                total[i] /= max(n[i], 1.0)
            for r in range(size):
                for i in range(width):
                    d = (y[r, i] - total[i]) * real[r, i]
                    spread[i] += d * d
            for i in range(width):
                both = count[u + i] + n[i]
                share = n[i] / max(both, 1.0)
                d = total[i] - mean[u + i]
                mean[u + i] += d * share
                m2[u + i] += spread[i] + d * d * count[u + i] * share
                count[u + i] = both


@compiled()
def _unit_row(data, start, stride, mask, at, mask_stride, width, y, real, n, total):  # type: ignore[no-untyped-def]
    if stride == 1 and mask_stride == 0:
        row = data[start : start + width]
        one = 1.0 if mask[at] else 0.0
        for i in range(width):
            real[i] = one if abs(np.float64(row[i])) <= _LARGEST else 0.0
            y[i] = np.float64(row[i]) if real[i] > 0 else 0.0
    else:
        for i in range(width):
            value = np.float64(data[start + i * stride])
            real[i] = 1.0 if mask[at + i * mask_stride] and math.isfinite(value) else 0.0
            y[i] = value if real[i] > 0 else 0.0
    for i in range(width):
        n[i] += real[i]
        total[i] += y[i]
