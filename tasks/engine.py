"""The KPI engine: key figures of a tensor, each example or each kept slice by itself, in one read and in float64.

    figures(residual, mask=real[..., None])        # (batch, KPI)
    figures(pattern, distributions=True, keep=(1,))  # (batch, head, KPI)

Elements that are not finite are counted, as `nan` and `inf`, and take no part in the other figures: an overview must
find them, and still show the rest. `Moments` (accumulators.py) keeps the same over a whole corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosslens.adapters.errors import InputError

from .kernels import FIELDS, Array, as_bits, empty, reader

KPIS: tuple[str, ...] = (
    "count", "mean", "sd", "abs_mean", "rms", "abs_max", "min", "max", "zero_fraction", "mean_norm", "entropy",
    "skewness", "kurtosis", "nan", "inf",
)  # fmt: skip
"""In the order of the last axis of `figures`."""

_READ_AS = (torch.float32, torch.float64)  # others are widened, an example at a time
_NO_MASK = np.ones(1, dtype=np.bool_)


def figures(
    tensor: Tensor, mask: Tensor | None = None, *, distributions: bool = False, keep: Sequence[int] = ()
) -> Tensor:
    """Key figures of each example, or of each kept slice of it: (batch, *kept, KPI), float64 on the CPU.

    Args:
        tensor: (batch, ...), of any rank from 1 and any real dtype. A row is a vector along its last axis that is not
            kept.
        mask: bool, True at real elements; of the tensor's shape, or with 1 in place of any axis but the first.
        distributions: the rows are distributions, such as attention over keys.
        keep: axes other than the first that stay separate: heads, positions, units.

    The figures, in units of the tensor unless said otherwise:
        count: number of finite real elements; the figures below are of these.
        mean, sd, abs_mean, rms, abs_max, min, max: sd divides by count.
        zero_fraction: share that is exactly 0.
        mean_norm: mean Euclidean norm of the rows that have a real element.
        entropy: mean entropy of those rows, in nats; NaN without `distributions`.
        skewness, kurtosis: standardised third moment, and fourth less 3; NaN where all are equal.
        nan, inf: number of real elements that are not finite.
        All but counts are NaN where there is no finite real element.

    Raises:
        InputError: a complex or empty tensor, a mask that does not fit it, or an axis that it has not.
    """
    kept = _checked(tensor, mask, keep)
    shape = [tensor.shape[0], *(tensor.shape[axis] for axis in kept)]
    return torch.from_numpy(derive(fields(tensor, mask, distributions, kept), distributions)).view(*shape, len(KPIS))


def fields(tensor: Tensor, mask: Tensor | None, distributions: bool, kept: Sequence[int]) -> Array:
    """(groups, fields of `kernels.FIELDS`): one group an example and kept slice; arguments as checked by `figures`."""
    x = tensor.detach()
    if x.device.type != "cpu":
        x, mask = x.cpu(), None if mask is None else mask.cpu()
    x = x[:, None] if x.ndim == 1 else x
    rest = [axis for axis in range(1, x.ndim) if axis not in kept]
    inner = rest.pop() if rest else None
    order = [0, *kept, *rest]
    shape = [x.shape[axis] for axis in order]
    groups = int(np.prod(shape[: 1 + len(kept)]))
    width, stride = (1, 0) if inner is None else (x.shape[inner], x.stride(inner))
    offsets = _offsets(shape, [x.stride(axis) for axis in order]).reshape(groups, -1)
    marks, mask_offsets, mask_stride = _mask(mask, x, order, inner, groups)
    out = empty(groups)
    read = reader()
    if x.dtype in _READ_AS:
        data = _flat(x)
        read(data, *as_bits(data), offsets, stride, width, marks, mask_offsets, mask_stride, distributions, out)
        return out
    rows = x.permute(*order, *([] if inner is None else [inner]))
    for group, index in enumerate(np.ndindex(*shape[: 1 + len(kept)])):  # one at a time is widened
        data = rows[index].double().flatten().numpy()
        own = np.arange(offsets.shape[1], dtype=np.int64)[None] * width
        at = slice(group, group + 1)
        read(data, *as_bits(data), own, 1, width, marks, mask_offsets[at], mask_stride, distributions, out[at])
    return out


def derive(kept: Array, distributions: bool) -> Array:
    """(groups, fields) -> (groups, KPI)."""
    f = dict(zip(FIELDS, kept.T, strict=True))
    n, rows = f["count"], f["rows"]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = f["m2"] / n
        found = {
            "count": n,
            "mean": np.where(n > 0, f["mean"], np.nan),
            "sd": np.sqrt(variance),
            "abs_mean": f["abs_sum"] / n,
            "rms": np.sqrt(f["square_sum"] / n),
            "abs_max": np.where(n > 0, np.maximum(-f["low"], f["high"]), np.nan),
            "min": np.where(n > 0, f["low"], np.nan),
            "max": np.where(n > 0, f["high"], np.nan),
            "zero_fraction": f["zeros"] / n,
            "mean_norm": np.where(n > 0, f["norms"] / rows, np.nan),
            "entropy": np.where(n > 0, f["entropy"] / rows, np.nan) if distributions else np.full_like(n, np.nan),
            "skewness": np.where(f["m2"] > 0, f["m3"] / n / variance**1.5, np.nan),
            "kurtosis": np.where(f["m2"] > 0, f["m4"] / n / variance**2 - 3, np.nan),
            "nan": f["nan"],
            "inf": f["inf"],
        }
    return np.ascontiguousarray(np.stack([found[name] for name in KPIS], axis=-1))


def top_singular_value(matrix: Tensor) -> float:
    """Largest singular value of a parameter; one of rank above 2 is read as (first axis, all others).

    Raises:
        InputError: fewer than two axes.
    """
    if matrix.ndim < 2 or not matrix.numel():
        raise InputError(f"a singular value needs a matrix, not a tensor of shape {tuple(matrix.shape)}")
    return float(torch.linalg.matrix_norm(matrix.detach().double().flatten(1), ord=2))


def _flat(x: Tensor) -> NDArray[np.generic]:
    """The memory that a tensor lies in, from its first element on, as one axis."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1,), (1,)).numpy()


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> NDArray[np.int64]:
    """Where each row begins, in elements."""
    found = np.zeros((), dtype=np.int64)
    for size, stride in zip(shape, strides, strict=True):
        found = found[..., None] + np.arange(size, dtype=np.int64) * stride
    return found


def _mask(
    mask: Tensor | None, x: Tensor, order: Sequence[int], inner: int | None, groups: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """The mask's memory, where it begins for each row, and its stride along a row: 0 where it is the same for all."""
    shape = [x.shape[axis] for axis in order]
    if mask is None:
        return _NO_MASK, np.zeros((groups, int(np.prod(shape)) // groups), dtype=np.int64), 0
    mask = mask[:, None] if mask.ndim == 1 else mask
    strides = [0 if mask.shape[axis] == 1 else mask.stride(axis) for axis in range(mask.ndim)]
    offsets = _offsets(shape, [strides[axis] for axis in order]).reshape(groups, -1)
    data: NDArray[np.bool_] = _flat(mask)  # type: ignore[assignment]
    return data, offsets, 0 if inner is None else strides[inner]


def _checked(tensor: Tensor, mask: Tensor | None, keep: Sequence[int]) -> list[int]:
    """The kept axes in order, counted from 0."""
    shape = tuple(tensor.shape)
    if tensor.is_complex() or tensor.ndim < 1 or not tensor.numel() or tensor.is_sparse:
        raise InputError(f"key figures need a dense real tensor (batch, ...) with elements, not {tensor.dtype} {shape}")
    kept = sorted({axis % tensor.ndim if -tensor.ndim <= axis < tensor.ndim else -1 for axis in keep})
    if kept and kept[0] < 1:
        raise InputError(
            f"keep={list(keep)}: a tensor of shape {shape} has axes 1 to {tensor.ndim - 1} beside its first"
        )
    if mask is not None:
        fits = mask.dtype == torch.bool and mask.ndim == tensor.ndim and len(mask) == len(tensor)
        if not fits or any(m not in (1, size) for m, size in zip(mask.shape, shape, strict=True)):
            raise InputError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; for a tensor of shape {shape} it must be "
                "bool of that shape, or with 1 in place of any axis but the first"
            )
    return kept
