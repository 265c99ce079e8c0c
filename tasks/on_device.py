"""The sums behind key figures by PyTorch, where the tensor lies; loops.py is for the processor's own memory."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import FIELDS, Array


def fields_there(x: Tensor, real: Tensor, distributions: bool, groups: int) -> Array:
    """(groups, fields) of one block, on the CPU.

    Args:
        x: float64; its first `groups` axes are kept apart, its last is a row.
        real: bool, of the same shape.
    """
    count = x.shape[:groups]
    x, real = (t.reshape(count.numel(), -1, x.shape[-1]) for t in (x, real))
    there, finite = real.any(2), real & x.isfinite()
    n = finite.sum((1, 2)).double()
    y = torch.where(finite, x, 0.0)
    mean = y.sum((1, 2)) / n.clamp(min=1)
    d = torch.where(finite, y - mean[:, None, None], 0.0)
    norms = torch.linalg.vector_norm(y, dim=2)
    found = {
        "count": n,
        "mean": mean,
        "m2": d.pow(2).sum((1, 2)),
        "m3": d.pow(3).sum((1, 2)),
        "m4": d.pow(4).sum((1, 2)),
        "abs_sum": y.abs().sum((1, 2)),
        "square_sum": norms.square().sum(1),
        "low": torch.where(finite, y, torch.inf).amin((1, 2)),
        "high": torch.where(finite, y, -torch.inf).amax((1, 2)),
        "zeros": (finite & (y == 0)).sum((1, 2)),
        "nan": (real & x.isnan()).sum((1, 2)),
        "inf": (real & x.isinf()).sum((1, 2)),
        "rows": there.sum(1),
        "norms": norms.sum(1),
        "entropy": torch.special.entr(y.clamp(min=0)).sum((1, 2)) if distributions else torch.zeros_like(n),
    }
    sums = torch.stack([found[name].double() for name in FIELDS], dim=-1)
    return sums.cpu().numpy()
