"""Attribution patching: what `sweep` gives, to first order, for all edits from two forwards and one backward.

The effect of an edit is estimated by the gradient of the metric at its site times the change that it makes there
(Nanda 2023, "Attribution patching"; Syed et al. 2023, arXiv:2310.10348). Exact where the metric is linear there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Edit, InputError, Inspector

from .sweeping import Metric


def estimate(lens: Inspector, inputs: Any, edits: Sequence[Sequence[Edit]], metric: Metric) -> Tensor:
    """The metric under each of many edits, to first order: (len(edits), batch).

    Args:
        lens, inputs, edits, metric: as in `sweeping.sweep`. Edits of several sites add up, each with the change that it
            makes to the unedited tensor.

    Raises:
        InputError: an edit at a `module:` or `native:` site, whose shape only a forward shows.
        SiteError, EditError, UnsupportedError: as `Inspector.run` and `Inspector.gradients`.
    """
    ready = lens._prepare(inputs)
    plans = [lens._plan(ready, ready.geometry, (), element, None) for element in edits]
    sites = list(dict.fromkeys(visit.site.name for plan in plans for visit in plan.visits))
    if late := [visit.site.name for plan in plans for visit in plan.visits if visit.late]:
        raise InputError(f"site {late[0]!r}: attribution patching needs canonical sites; sweep() takes any")
    run = lens.run(inputs, capture=sites)
    plain = metric(run.logits)
    if not isinstance(plain, Tensor) or plain.shape != (ready.geometry.batch,):
        raise InputError(f"the metric must return one number a row, ({ready.geometry.batch},)")
    if not sites:
        return plain.detach().expand(len(edits), -1).clone()
    gradients = lens.gradients(inputs, sites, metric)
    found = []
    for plan in plans:
        value = plain.detach().clone()
        for visit in plan.visits:
            name = visit.site.name
            before, after = run[name], run[name]
            for edit in visit.edits:
                for piece in edit.bind(ready.geometry):
                    after = piece.apply(after)
            value += ((after - before) * gradients[name]).flatten(1).sum(1)
        found.append(value)
    return torch.stack(found) if found else torch.empty(0, ready.geometry.batch)
