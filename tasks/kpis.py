"""Key figures of a tensor: a few numbers an example, over its real elements only, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from crosslens.adapters.errors import InputError

NAMES: tuple[str, ...] = (
    "count",
    "mean",
    "sd",
    "abs_mean",
    "rms",
    "abs_max",
    "min",
    "max",
    "zero_fraction",
    "mean_norm",
    "entropy",
)
"""The KPIs in the order in which `kpis` gives them."""


def kpis(tensor: Tensor, mask: Tensor, *, distributions: bool = False) -> Tensor:
    """Key figures of each example: (batch, kpi), float64, in the order of `NAMES`.

    A row is a vector along the last axis: what one token has at a residual site, what one query of one head gives to
    all keys at an attention pattern. What lies outside the mask takes no part, not even where it is NaN.

    Args:
        tensor: (batch, ..., width), floating point.
        mask: bool, True at real elements; of the tensor's shape, or with 1 in place of any axis but the first.
        distributions: the rows are distributions, such as attention over keys.

    The figures, in units of the tensor unless said otherwise:
        count: number of real elements.
        mean, sd, abs_mean, rms, abs_max, min, max: of the real elements; sd divides by count.
        zero_fraction: share of real elements that are exactly 0.
        mean_norm: mean Euclidean norm of the rows that have a real element.
        entropy: mean entropy of those rows, in nats; NaN without `distributions`.

    Raises:
        InputError: the tensor is not floating-point, the mask does not fit it, or an example has no real element.
    """
    _check(tensor, mask)
    x = torch.where(mask, tensor.double(), 0.0)  # a 0 adds nothing to any sum below
    rows = mask.any(-1).expand(x.shape[:-1]).flatten(1).sum(1)
    count = mask.expand(x.shape).flatten(1).sum(1).double()  # the square root of an integer would be float32
    mean = x.flatten(1).sum(1) / count
    deviation = torch.where(mask, x - mean.reshape(-1, *[1] * (x.ndim - 1)), 0.0)
    norms = torch.linalg.vector_norm(x, dim=-1).flatten(1)  # batch, row
    low = torch.where(mask, tensor, torch.inf).flatten(1).amin(1).double()
    high = torch.where(mask, tensor, -torch.inf).flatten(1).amax(1).double()
    outside = x[0].numel() - count
    figures = {
        "count": count,
        "mean": mean,
        "sd": torch.linalg.vector_norm(deviation.flatten(1), dim=1) / count.sqrt(),
        "abs_mean": x.abs().flatten(1).sum(1) / count,
        "rms": torch.linalg.vector_norm(norms, dim=1) / count.sqrt(),
        "abs_max": torch.maximum(-low, high),
        "min": low,
        "max": high,
        "zero_fraction": ((x == 0).flatten(1).sum(1) - outside) / count,
        "mean_norm": norms.sum(1) / rows,
        "entropy": torch.special.entr(x).flatten(1).sum(1) / rows if distributions else torch.nan * mean,
    }
    return torch.stack([figures[name] for name in NAMES], dim=-1)


def causal_mask(tokens: Tensor) -> Tensor:
    """Mask of a decoder's attention pattern, (batch, 1, query, key), from that of its real tokens, (batch, pos)."""
    real = tokens.bool()
    width = real.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    return (real[:, :, None] & real[:, None, :] & causal)[:, None]


def _check(tensor: Tensor, mask: Tensor) -> None:
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point() or tensor.ndim < 2 or not tensor.numel():
        raise InputError(f"KPIs need a floating-point tensor (batch, ..., width), not {tensor.dtype} of shape {shape}")
    fits = mask.dtype == torch.bool and mask.ndim == tensor.ndim and len(mask) == len(tensor)
    if not fits or any(m not in (1, size) for m, size in zip(mask.shape, shape, strict=True)):
        raise InputError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; for a tensor of shape {shape} it must be bool "
            "of that shape, or with 1 in place of any axis but the first"
        )
    empty = ~mask.flatten(1).any(1)
    if bool(empty.any()):
        raise InputError(f"example {int(empty.nonzero()[0])} has no real element")
