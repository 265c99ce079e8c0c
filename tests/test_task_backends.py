"""Tasks on tiny models: right through plain hooks and other libraries, and wrong through backends that are wrong."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from crosslens.adapters import open_inspector
from crosslens.adapters.conformance import FAMILIES
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector
from crosslens.tasks import Result, Task, load_task

from .broken import IgnoresEdits, NextPosition, NextUnit, OtherLayer, ShiftedPositions, SwappedHeads

CAUSAL = ["induction", "agreement", "facts", "neurons"]
"""Tasks that read what an edit does; those that come later have files of their own that say more."""
CAUGHT = {
    IgnoresEdits: ["ioi", "induction", "facts", "neurons", "steering"],
    ShiftedPositions: ["ioi", "facts", "lens"],
    NextPosition: ["facts"],
    NextUnit: ["neurons"],
    SwappedHeads: ["induction"],
    OtherLayer: ["ioi", "characters", "induction", "agreement", "facts", "neurons", "lens", "probe"],
}
"""What is wrong -> tasks that must notice it; every other task may."""


@cache
def prepared(name: str, family: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[Task, Any, Any, Result]:
    """The task, its model, its work and the reference."""
    model, tokenizer = tiny_model(family, dtype=dtype)
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="smoke")
    return task, model, work, task.reference(model, work)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CAUSAL)
def test_hooks_agree_with_the_reference(name: str, family: str, dtype: torch.dtype) -> None:
    task, model, work, reference = prepared(name, family, dtype)
    with open_inspector("hooks", model) as lens:
        result = task.run(lens, work)
    score = task.score(result, reference, work, str(dtype).removeprefix("torch."))
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > task.least_effect


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "pyvene"])
@pytest.mark.parametrize("name", CAUSAL)
def test_libraries_agree_with_the_reference(name: str, backend: str) -> None:
    task, model, work, reference = prepared(name, dtype=torch.float32)
    with open_inspector(backend, model) as lens:
        result = task.run(lens, work)
    assert task.score(result, reference, work, "float32").right


@pytest.mark.parametrize(("wrong", "name"), [(wrong, name) for wrong, names in CAUGHT.items() for name in names])
def test_a_wrong_backend_is_called_wrong(wrong: type[HooksInspector], name: str) -> None:
    task, model, work, reference = prepared(name)
    with wrong(model) as lens:
        score = task.score(task.run(lens, work), reference, work, "float64")
    assert not score.right
    assert score.max_rel_error > 10 * score.noise, "it is not near what rounding can do"


@pytest.mark.parametrize("name", sorted({name for names in CAUGHT.values() for name in names} - set(CAUSAL)))
def test_a_right_backend_is_called_right(name: str) -> None:
    task, model, work, reference = prepared(name)
    with HooksInspector(model) as lens:
        score = task.score(task.run(lens, work), reference, work, "float64")
    assert score.right
    assert score.effect >= task.least_effect
