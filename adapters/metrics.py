"""What a caller differentiates or compares: one number a row, computed from the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .errors import InputError

Metric = Callable[[Tensor], Tensor]
"""Logits (batch, pos, d_vocab), or the output of a model without, -> a number, or one a row."""


def total(metric: Metric, output: Any) -> Tensor:
    """The metric of a model's output, summed over rows.

    Raises:
        InputError: it returned something else than a number or one number a row.
    """
    logits = getattr(output, "logits", output)
    value = metric(logits)
    if not isinstance(value, Tensor) or value.ndim > 1:
        shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the metric returned {shown}; it must return a number or one number a row, as a tensor")
    return value.sum()
