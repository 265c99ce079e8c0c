"""Backends that are wrong in one way: tasks must call each of them wrong."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector
from crosslens.tasks import Result, Task, load_task

from .broken import IgnoresEdits, OtherLayer, ShiftedPositions, SwappedHeads

CAUGHT = {
    IgnoresEdits: ["ioi", "induction", "steering"],
    ShiftedPositions: ["ioi", "lens"],
    SwappedHeads: ["induction"],
    OtherLayer: ["ioi", "characters", "agreement", "lens", "probe"],
}
"""Mutation -> tasks that must notice it; every other task may."""


@cache
def prepared(name: str) -> tuple[Task, Any, Any, Result]:
    """The task, its model, its work and the reference."""
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="smoke")
    return task, model, work, task.reference(model, work)


@pytest.mark.parametrize(
    ("mutation", "name"), [(mutation, name) for mutation, names in CAUGHT.items() for name in names]
)
def test_a_task_notices(mutation: type[HooksInspector], name: str) -> None:
    task, model, work, reference = prepared(name)
    with mutation(model) as lens:
        score = task.score(task.run(lens, work), reference, work, "float64")
    assert not score.right
    assert score.max_rel_error > 10 * score.noise, "it is not near what rounding can do"


@pytest.mark.parametrize("name", sorted({name for names in CAUGHT.values() for name in names}))
def test_a_right_backend_is_called_right(name: str) -> None:
    task, model, work, reference = prepared(name)
    with HooksInspector(model) as lens:
        score = task.score(task.run(lens, work), reference, work, "float64")
    assert score.right
    assert score.effect >= task.least_effect
