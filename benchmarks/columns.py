"""Columns of the rendered tables: what each shows of a row, and what its header says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .estimate import Estimate


@dataclass(frozen=True)
class Column:
    """A column of the rendered tables.

    A header breaks into lines on a terminal only.

    Args:
        missing: shown where a backend ran and has no such figure.
        spare: where a terminal has no room, the columns of the largest go first; those of 0 never.
    """

    key: str
    header: str
    text: Callable[[Any], str] = str
    align: Literal["left", "right"] = "right"
    missing: str = ""
    spare: int = 0


def cell_text(row: Any, column: Column) -> str:
    """What a table shows of a row in a column; empty where there is nothing to show."""
    value = getattr(row, column.key)
    if value is None:
        return column.missing if row.processes and row.ratio is not None else ""
    return column.text(value)


def ratio_text(ratio: Estimate) -> str:
    """Such as `1.042 [1.031, 1.055]`, with digits enough to see whether it covers 1."""
    value, low, high = map(_bound, (ratio.value, ratio.low, ratio.high))
    return f"{value} [{low}, {high}]"


def _bound(value: float) -> str:
    if value < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 10_000 else f"{value:.0e}" if math.isfinite(value) else "inf"


def short(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def scientific(value: float) -> str:
    """Such as `2.0e-07`."""
    return f"{value:.1e}"


def whole(value: float) -> str:
    """No digits after the point."""
    return f"{value:.0f}"
