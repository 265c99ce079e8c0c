"""The KPI engine: key figures of a tensor, each example or each kept slice by itself, in one read and in float64.

    figures(residual, mask=real[..., None])        # (batch, KPI)
    figures(pattern, distributions=True, keep=(1,))  # (batch, head, KPI)

Elements that are not finite are counted, as `nan` and `inf`, and take no part in the other figures: an overview must
find them, and still show the rest. `Moments` (accumulators.py) keeps the same over a whole corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosslens.adapters.errors import InputError

from .kernels import FIELDS, Array, empty, joined

KPIS: tuple[str, ...] = (
    "count", "mean", "sd", "abs_mean", "rms", "abs_max", "min", "max", "zero_fraction", "mean_norm", "entropy",
    "skewness", "kurtosis", "nan", "inf",
)  # fmt: skip
"""In the order of the last axis of `figures`."""

_READ_AS = (torch.float32, torch.float64)  # others are widened, a block at a time
_BLOCK, _BLOCK_THERE = 1 << 17, 1 << 23  # elements; the former stay in the processor's second cache


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
    x, real = strided(tensor, mask)
    rest = [axis for axis in range(1, x.ndim) if axis not in kept]
    if not rest:  # each element is a row
        x, real, rest = x[..., None], real[..., None], [x.ndim]
    order = [0, *kept, *rest]
    x, real = x.permute(order), real.permute(order)
    groups = x.shape[: 1 + len(kept)]
    out = empty(math.prod(groups))
    each = out.reshape(*groups, len(FIELDS))
    if x.device.type != "cpu":
        from .on_device import fields_there

        for block, marks, at in pieces(x, real, _BLOCK_THERE):
            part = each[at[: len(groups)]]
            found = fields_there(block.double(), marks, distributions, len(groups))
            part[...] = joined(part, found.reshape(part.shape))
        return out
    from .loops import read

    for block, marks, at in pieces(x, real, None if x.dtype in _READ_AS else _BLOCK):
        part = each[at[: len(groups)]].reshape(-1, len(FIELDS))  # a view
        per_group = math.prod(block.shape[len(groups) : -1])
        read(*memory(widened(block)), *memory(marks)[::2], per_group, distributions, part)
    return out


def strided(tensor: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tensor with two axes or more, where its figures are taken, and a mask of its shape, without copies."""
    x = tensor.detach().resolve_neg()
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    real = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask.to(x.device)
    real = real.expand(x.shape)
    return (x[:, None], real[:, None]) if x.ndim == 1 else (x, real)


def pieces(x: Tensor, real: Tensor, size: int | None) -> Iterator[tuple[Tensor, Tensor, tuple[slice, ...]]]:
    """Views of tensor and mask of at most `size` elements, but whole along the last axis; and where each lies."""
    axis = next((axis for axis, n in enumerate(x.shape[:-1]) if n > 1), None)
    if size is None or axis is None or x.numel() <= size:
        yield x, real, (slice(None),) * x.ndim
        return
    step = max(1, size * x.shape[axis] // x.numel())
    for start in range(0, x.shape[axis], step):
        here = slice(start, start + step)
        index = (slice(None),) * axis + (here,)
        for block, marks, at in pieces(x[index], real[index], size):
            yield block, marks, (*at[:axis], here, *at[axis + 1 :])


def widened(x: Tensor) -> Tensor:
    """As float32 if that holds all values of the dtype, otherwise as float64, which rounds integers beyond 2^53."""
    if x.dtype in _READ_AS:
        return x
    return x.to(torch.float32 if x.dtype.itemsize <= 2 else torch.float64)


def memory(x: Tensor) -> tuple[NDArray[Any], Array, Array]:
    """The memory that a tensor lies in, from its first element on, as one axis; its shape; its strides in elements."""
    shape, strides = x.shape, x.stride()
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return x.as_strided((last + 1,), (1,)).numpy(), np.array(shape), np.array(strides)


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
