"""What a difference from the reference means.

Rounding and error look alike in one dtype, and not in two: with the same weights in float64 rounding shrinks by 2^29
(from float32) or 2^45 (from bfloat16), and an error stays what it is. So a difference in a short dtype is noise when
the same cell in float64 is as the reference, to float64 rounding, and when it is no larger than rounding explains. How
large that is is measured, cell by cell: by the reference's own forward with every site rounded to the dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from .asking import Distance
from .scene import dtype_of

Class = Literal["exact", "noise", "wrong", "silently wrong", "refused", "error"]
CLASSES: tuple[Class, ...] = ("exact", "noise", "refused", "wrong", "silently wrong", "error")
BAD = ("wrong", "silently wrong", "error")

SHORT = "what rounding to float32 somewhere makes"
"""In the reason of a wrong answer in float64 that is no further off than that."""
MARGIN = {"float64": 64.0, "float32": 16.0, "bfloat16": 8.0}
"""Times the rounding of every site, which leaves out that of the operations between two sites: up to 80 numbers are
added up there, with a rounding each in float32 and float64 (those of bfloat16 are added up in float32). In float64 it
can be generous: what must not pass is rounding to float32 somewhere, which is 2^29 times as much."""


@dataclass(frozen=True)
class Verdict:
    """Class of a cell in one dtype.

    Attributes:
        name: the class.
        distance: from the reference, in the arithmetic that is nearest.
        floor: relative error that rounding each site to this dtype makes.
        arithmetic: the one that is nearest; empty for the one that was asked for.
        why: what was seen, where it is not exact or noise.
    """

    name: Class
    distance: Distance | None = None
    floor: float = 0.0
    arithmetic: str = ""
    why: str = ""


def unit(dtype: str) -> float:
    """Unit roundoff: the largest relative error of one rounding."""
    return float(torch.finfo(dtype_of(dtype)).eps) / 2


def floors(simulated: Mapping[str, float], by_definition: bool = False) -> dict[str, float]:
    """What rounding alone does in each dtype, relative to the largest magnitude.

    Args:
        simulated: float32 and bfloat16 -> error of the reference with its sites rounded.
        by_definition: whether the operation is defined in float32 whatever the model's dtype.

    float64 cannot be simulated in float64: it is float32's, less by the ratio of the unit roundoffs.
    """
    found = {dtype: max(error, unit(dtype)) for dtype, error in simulated.items()}
    ratio = 1.0 if by_definition else unit("float64") / unit("float32")
    return found | {"float64": found["float32"] * ratio}


def judge(
    dtype: str,
    distances: Mapping[str, Distance],
    floor: Mapping[str, float],
    rerun: Verdict | None,
    warned: str = "",
) -> Verdict:
    """The verdict on one answer.

    Args:
        dtype: of the model.
        distances: kind of arithmetic -> distance from the reference in it; the one that was asked for first.
        floor: as `floors` gives it.
        rerun: the verdict in float64; None for float64 itself.
        warned: what the library said meanwhile.
    """
    asked = next(iter(distances))
    nearest = min(distances, key=lambda name: distances[name].relative)
    found, own = distances[nearest], distances[asked]
    bound = MARGIN[dtype] * floor[dtype]
    where = "" if own.relative <= bound or nearest == asked else nearest
    if where == "":
        found = own if own.relative <= bound else found
    if found.visible or found.relative > bound:
        much = found.visible or f"off by {found.relative:.2g} of the largest value; rounding explains {bound:.2g}"
        if dtype == "float64" and found.relative <= floor["float32"]:
            much += f"; it is {SHORT}"
        return _wrong(found, floor[dtype], where, f"{found.part}: {much}", warned)
    if found.relative == 0:
        return Verdict("exact", found, floor[dtype], where)
    if rerun is None:
        tight = MARGIN["float64"] * floor["float32"] * unit("float64") / unit("float32")
        return Verdict("noise" if where or found.relative > tight else "exact", found, floor[dtype], where)
    if rerun.name in ("exact", "noise") or _short_of_float32(rerun, floor):
        return Verdict("noise", found, floor[dtype], where)
    assert rerun.distance is not None or rerun.name in ("refused", "error")
    left = f"{rerun.distance.relative:.2g} is left of it" if rerun.distance else f"it is {rerun.name}"
    return _wrong(
        found, floor[dtype], where, f"{found.part}: off by {found.relative:.2g}, and in float64 {left}", warned
    )


def _short_of_float32(rerun: Verdict, floor: Mapping[str, float]) -> bool:
    """What is wrong in float64 is no more than one rounding of every site to float32: no error in shorter dtypes."""
    return rerun.distance is not None and rerun.distance.relative <= floor["float32"]


def _wrong(found: Distance, floor: float, arithmetic: str, why: str, warned: str) -> Verdict:
    """Silently, where shape, dtype and warnings say nothing."""
    told = found.visible or warned
    return Verdict("wrong" if told else "silently wrong", found, floor, arithmetic, f"{why}{_said(warned)}")


def _said(warned: str) -> str:
    return f"; the library warned: {warned}" if warned else ""
