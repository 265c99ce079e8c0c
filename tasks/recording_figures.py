"""Figures of the tensors of one training step, read where they lie, as they pass.

A tensor is read at its address by one compiled call, without a copy and without an array object: for small models the
cost of recording is the Python around it. What the loops here do not take goes through `engine.fields`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosslens.adapters.errors import InputError

from .engine import KPIS, derive, fields
from .kernels import FIELDS, Array, empty, join_into

BATCH = tuple(
    f"{name}/{way}"
    for name in ("mean", "abs_mean", "std", "abs_max")
    for way in ("batch_mean", "batch_std", "batch_abs_max")
)
"""comgra's figures: of each sample (first axis), then over the batch; see `accumulators.comgra_figures`."""
KNOWN = (*(name for name in KPIS if name != "entropy"), *BATCH)
DEFAULT = ("count", "mean", "sd", "abs_mean", "rms", "abs_max", "min", "max", "zero_fraction", "nan", "inf")
_BY_LOOPS = {*DEFAULT, *BATCH}  # what the loops below fill the fields of; the engine reads for any other
_CHUNK = 2048  # elements; fits the first cache, so that going over it again costs no read of memory


def checked_kpis(kpis: Sequence[str] | None) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        InputError: a name that is none.
    """
    names = DEFAULT if kpis is None else tuple(dict.fromkeys([kpis] if isinstance(kpis, str) else kpis))
    for name in names:
        if name not in KNOWN:
            raise InputError(f"kpis: there is no figure {name!r} here; there are {', '.join(KNOWN)}")
    if not names:
        raise InputError("kpis is empty; name figures, or leave it out")
    return names


class Figures:
    """Rows of `kernels.FIELDS`, one a tensor and, where asked for, one a sample.

    Attributes:
        count: number of tensors read.
        owners: (tensor's row, number of samples) of each tensor that was read by sample.
    """

    def __init__(self, kpis: Sequence[str]) -> None:
        self._by_engine = not _BY_LOOPS.issuperset(kpis)
        self._batch = not set(BATCH).isdisjoint(kpis)
        self._whole, self._by_sample = _loops()
        self._rows, self._samples = empty(64), empty(64)
        self._over_batch: Array = np.full((64, len(BATCH)), np.nan)
        self._exact = np.zeros(64, dtype=np.bool_)
        self.clear()

    def clear(self) -> None:
        """Forget what was read."""
        self.count = self._used = 0
        self.owners: list[tuple[int, int]] = []

    def read(self, tensor: Tensor, batched: bool, samples: bool) -> int:
        """Read a tensor; returns its row.

        Args:
            batched: whether its first axis is the batch.
            samples: whether to keep a row for each sample too.

        Raises:
            InputError: complex or empty.
        """
        row = self.count
        if row == len(self._rows):
            self._grow()
        if not (
            type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in (torch.float32, torch.float64)
            and tensor.layout is torch.strided and tensor.is_cpu and not tensor.is_neg()
        ):  # fmt: skip
            self._exact[row] = not tensor.is_floating_point()
            tensor = _plain(tensor)
        else:
            self._exact[row] = tensor.dtype is torch.float64
        each = batched and (self._batch or samples) and tensor.ndim > 0
        if not tensor.is_contiguous() and (each or tensor.ndim != 2 or not tensor.t().is_contiguous()):
            tensor = tensor.detach().contiguous()  # the order of elements is nothing to figures of the whole
        size = tensor.numel()
        if not size:
            raise InputError(f"an empty tensor, {tuple(tensor.shape)}, has no figures")
        if self._by_engine:
            self._rows[row] = fields(tensor.detach().reshape(1, *(tensor.shape or (1,))), None, False, ())[0]
        if each:
            groups = tensor.shape[0]
            while self._used + groups > len(self._samples):
                self._samples = np.concatenate([self._samples, empty(len(self._samples))])
            at = (self._samples, self._used)
            if self._by_engine:
                self._samples[self._used : self._used + groups] = fields(tensor, None, False, ())
            self._by_sample(
                tensor.data_ptr(), tensor.dtype is torch.float64, groups, size // groups, not self._by_engine, *at,
                self._rows, self._over_batch, row,
            )  # fmt: skip
            if samples:
                self.owners.append((row, groups))
                self._used += groups
        else:
            self._over_batch[row] = np.nan
            if not self._by_engine:
                self._whole(tensor.data_ptr(), tensor.dtype is torch.float64, size, self._rows, row)
        self.count = row + 1
        return row

    def row(self, index: int) -> Array:
        """(fields,) of a tensor."""
        found: Array = self._rows[index]
        return found

    def taken(self, rows: Sequence[int]) -> tuple[Array, Array | None, np.ndarray, Array]:
        """Copies: (tensor, fields), (tensor, BATCH) if asked for, exact (tensor,), and (sample, fields) of all."""
        over_batch = self._over_batch[rows] if self._batch else None
        return self._rows[rows], over_batch, self._exact[rows], self._samples[: self._used].copy()

    def _grow(self) -> None:
        n = len(self._rows)
        self._rows = np.concatenate([self._rows, empty(n)])
        self._over_batch = np.concatenate([self._over_batch, np.full((n, len(BATCH)), np.nan)])
        self._exact = np.concatenate([self._exact, np.zeros(n, dtype=np.bool_)])


def values(kept: Array, over_batch: Array | None, exact: np.ndarray, kpis: Sequence[str]) -> Array:
    """(row, KPI) in float64; rows of tensors of single precision are rounded to its 24 bits, for the disk's sake."""
    pooled = derive(kept, False)
    columns = []
    for name in kpis:
        if name in BATCH:
            columns.append(np.full(len(kept), np.nan) if over_batch is None else over_batch[:, BATCH.index(name)])
        else:
            columns.append(pooled[:, KPIS.index(name)])
    found = np.stack(columns, axis=1)
    mantissa, exponent = np.frexp(found)
    return np.where(exact[:, None], found, np.ldexp(np.rint(mantissa * 2**24), exponent - 24))


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, dense, float32 or float64."""
    if tensor.is_complex() or tensor.is_nested:
        raise InputError(f"{'complex numbers' if tensor.is_complex() else 'a nested tensor'} have no figures here")
    with torch.no_grad():
        x = tensor.detach()
        x = x.to_dense() if x.layout is not torch.strided else x
        single = x.is_floating_point() and (x.dtype.itemsize < 4 or x.dtype is torch.float32)
        return x.to("cpu", torch.float32 if single else torch.float64).resolve_neg()


@cache
def _loops() -> tuple[Any, Any]:
    """Compiled when first needed: figures of a whole tensor, and of each sample of it.

    (address, whether float64, size, out, row) and (address, whether float64, samples, size of one, whether to write
    figures or only read them, rows of samples, first of them, out, over the batch, row).
    """
    import numba
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    sums = {"reassoc", "contract", "nsz"}
    finite = {*sums, "nnan", "ninf"}

    @intrinsic
    def pointer(context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(address), generate

    @numba.njit(cache=True, fastmath=sums, nogil=True)
    def sum_of(x):  # type: ignore[no-untyped-def]
        total = absolute = 0.0
        for i in range(len(x)):
            y = np.float64(x[i])
            total += y
            absolute += abs(y)
        return total, absolute

    @numba.njit(cache=True, fastmath=finite, nogil=True)
    def rest_of(x, mean):  # type: ignore[no-untyped-def]
        low = high = x[0]
        m2 = 0.0
        zeros = np.int32(0)
        for i in range(len(x)):
            low, high = min(low, x[i]), max(high, x[i])
            zeros += np.int32(x[i] == 0)
        for i in range(len(x)):
            d = np.float64(x[i]) - mean
            m2 += d * d
        return m2, low, high, zeros

    @numba.njit(cache=True, nogil=True)
    def careful(x, part):  # type: ignore[no-untyped-def]
        total = absolute = 0.0
        low, high = np.inf, -np.inf
        count = zeros = nans = infs = 0
        for i in range(len(x)):
            y = np.float64(x[i])
            if math.isfinite(y):
                count += 1
                total += y
                absolute += abs(y)
                low, high = min(low, y), max(high, y)
                zeros += y == 0
            elif math.isnan(y):
                nans += 1
            else:
                infs += 1
        mean = total / count if count else 0.0
        m2 = 0.0
        for i in range(len(x)):
            y = np.float64(x[i])
            if math.isfinite(y):
                m2 += (y - mean) ** 2
        part[0], part[1], part[2], part[5] = count, mean, m2, absolute
        part[7], part[8], part[9], part[10], part[11] = low, high, zeros, nans, infs

    join = numba.njit(cache=True, nogil=True)(join_into)

    @numba.njit(cache=True, nogil=True)
    def over(x, part, out):  # type: ignore[no-untyped-def]
        out[:] = 0.0
        out[7], out[8] = np.inf, -np.inf
        for start in range(0, len(x), _CHUNK):
            chunk = x[start : start + _CHUNK]
            total, absolute = sum_of(chunk)
            if math.isfinite(absolute):
                mean = total / len(chunk)
                m2, low, high, zeros = rest_of(chunk, mean)
                part[0], part[1], part[2], part[5] = len(chunk), mean, m2, absolute
                part[7], part[8], part[9], part[10], part[11] = low, high, zeros, 0, 0
            else:
                careful(chunk, part)
            part[6] = part[2] + part[0] * part[1] * part[1]
            join(out, part)
        out[12] = 1.0

    @numba.njit(cache=True, nogil=True)
    def whole(address, double, size, out, row):  # type: ignore[no-untyped-def]
        part = np.zeros(len(FIELDS))
        if double:
            over(numba.carray(pointer(address), (size,), np.float64), part, out[row])
        else:
            over(numba.carray(pointer(address), (size,), np.float32), part, out[row])

    @numba.njit(cache=True, nogil=True)
    def by_sample(address, double, groups, width, write, samples, first, out, over_batch, row):  # type: ignore[no-untyped-def]
        part = np.zeros(len(FIELDS))
        each = np.empty((4, groups))
        if write:
            out[row] = 0.0
            out[row, 7], out[row, 8] = np.inf, -np.inf
        for g in range(groups):
            s = samples[first + g]
            if write:
                if double:
                    over(numba.carray(pointer(address + 8 * g * width), (width,), np.float64), part, s)
                else:
                    over(numba.carray(pointer(address + 4 * g * width), (width,), np.float32), part, s)
                join(out[row], s)
            n = s[0]
            whole_sample = s[10] + s[11] == 0
            each[0, g] = s[1] if whole_sample else np.nan
            each[1, g] = s[5] / n if whole_sample else np.nan
            each[2, g] = (math.sqrt(s[2] / (n - 1)) if n > 1 else 0.0) if whole_sample else np.nan
            each[3, g] = max(-s[7], s[8]) if whole_sample else np.nan
        for k in range(4):
            total = spread = largest = 0.0
            for g in range(groups):
                total += each[k, g]
                largest = max(largest, abs(each[k, g]))
            mean = total / groups
            for g in range(groups):
                spread += (each[k, g] - mean) ** 2
            over_batch[row, 3 * k] = mean
            over_batch[row, 3 * k + 1] = math.sqrt(spread / (groups - 1)) if groups > 1 else np.nan
            over_batch[row, 3 * k + 2] = largest if math.isfinite(total) else np.nan

    return whole, by_sample
