"""The first position that edits change. Where a token sees only those before it, nothing earlier is different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from crosslens.adapters.inputs import Geometry
from crosslens.adapters.plan import Visit


def first_change(visits: Iterable[Visit], geometry: Geometry, base: Mapping[str, Tensor]) -> int:
    """The first column in which edits make a tensor another one; the number of columns where they change nothing.

    Args:
        visits: the edits of one element, checked, by site.
        geometry: of the forward, without padding.
        base: site name -> the tensor there without edits.
    """
    first = geometry.columns
    for visit in visits:
        before = after = base[visit.site.name]
        for edit in visit.edits:
            for piece in edit.bind(geometry):
                after = piece.apply(after)
        differs = after != before  # not a number differs from itself
        if "pos" not in visit.site.axes:
            first = 0 if bool(differs.any()) else first
            continue
        axis = visit.site.axes.index("pos")
        changed = differs.movedim(axis, 0).flatten(1).any(1).nonzero()
        if len(changed):
            first = min(first, int(changed[0]))
    return first
