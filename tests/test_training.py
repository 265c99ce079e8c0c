"""Categorised training steps: both recorders give what a loop by hand gives, and the fault is named where it is."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from crosslens.adapters import UnsupportedError, open_inspector
from crosslens.tasks import Result, load_model
from crosslens.tasks.training import TrainingSteps, diagnose, out_of_line
from crosslens.tasks.training_nets import trainings

TASK = TrainingSteps()


@cache
def scene() -> tuple[Any, Any, Result]:
    """Model, work and reference."""
    model, tokenizer = load_model("tiny-llama")
    work = TASK.prepare(model, tokenizer, size="smoke")
    return model, work, TASK.reference(model, work)


@pytest.mark.parametrize("backend", ["hooks", "comgra"])
def test_a_recorder_gives_what_a_loop_by_hand_gives(backend: str) -> None:
    model, work, reference = scene()
    with open_inspector(backend, model) as lens:
        result = TASK.run(lens, work)
    score = TASK.score(result, reference, work, "float32")
    assert score.right
    assert score.rank_agreement > 0.999
    assert score.effect > TASK.least_effect
    assert len(TASK.table(result, work)) > 500


def test_what_was_planted_is_named_and_nothing_elsewhere() -> None:
    _, work, reference = scene()
    known = TASK.known(reference, work)
    assert known.holds, known.found
    for number, training in enumerate(work.trainings):
        finding = diagnose(reference, number, training)
        assert ((finding.kind, finding.module) if finding.module else None) == training.place
    assert sum(training.place is None for training in work.trainings) == 2


def test_a_wrong_figure_is_wrong_and_a_moved_fault_is_not_what_is_known() -> None:
    _, work, reference = scene()
    broken = {name: values.copy() for name, values in reference.items()}
    broken["figures 1"][7, 0, 0, 0] *= 1.001
    assert not TASK.score(broken, reference, work, "float32").right
    exploding = next(i for i, t in enumerate(work.trainings) if t.place is not None)
    moved = {**reference, f"figures {exploding}": reference[f"figures {exploding}"][:, ::-1]}
    assert not TASK.known(moved, work).holds


def test_steps_out_of_line_are_those_unlike_the_ones_before() -> None:
    rng = np.random.default_rng(0)
    figure = np.exp(rng.normal(size=200) * 0.1 - np.arange(200) * 0.01)
    figure[[50, 120, 121]] *= 10
    assert {50, 120, 121} <= out_of_line(figure)
    assert len(out_of_line(figure)) <= 5


def test_data_and_nets_are_the_same_each_time() -> None:
    for one, two in zip(trainings(40), trainings(40), strict=True):
        assert one.workers == two.workers
        assert all(
            torch.equal(a, b) for x, y in zip(one.batches, two.batches, strict=True) for a, b in zip(x, y, strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(one.net().parameters(), two.net().parameters(), strict=True))


def test_a_backend_without_a_recorder_says_so() -> None:
    model, work, _ = scene()
    with open_inspector("nnsight", model) as lens, pytest.raises(UnsupportedError, match="no recorder of training"):
        TASK.run(lens, work)


def test_the_bare_step_does_the_same_as_the_recorded_one() -> None:
    model, work, _ = scene()
    with open_inspector("hooks", model) as lens:
        TASK.step(lens, work)()
    TASK.bare(model, work)()
