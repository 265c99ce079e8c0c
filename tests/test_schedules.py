"""Schedules: each rule by its own words, and the backoff step for step as comgra's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslens.adapters.errors import InputError
from crosslens.tasks.schedules import Schedule, When, as_schedule, at, every


def _run(schedule: Schedule, categories: list[str | None]) -> list[int]:
    taken = []
    for step, category in enumerate(categories):
        if schedule.due(step, category):
            schedule.recorded(step, category)
            taken.append(step)
    return taken


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    backoff=st.sampled_from([1.0, 1.1, 1.25, 1.5, 2.0, 3.7]),
    categories=st.lists(st.sampled_from("abc"), max_size=150),
)
def test_every_is_comgras_frequency_per_type(n: int, backoff: float, categories: list[str | None]) -> None:
    theirs = DecisionMakerForRecordingsFrequencyPerType(n, backoff)
    expected = []
    for step, category in enumerate(categories):
        if theirs.is_record_on_this_step(step, category):
            theirs.mark_recording_on_this_step(step, category)
            expected.append(step)
    assert _run(every(n, backoff=backoff), categories) == expected


def test_every_counts_from_the_last_recorded_step_of_the_category() -> None:
    assert _run(every(8), ["a", "b"] * 10) == [0, 1, 8, 9, 16, 17]  # what comgra did, as measured


def test_backoff_grows_the_gap() -> None:
    assert _run(every(1, backoff=2), ["a"] * 40) == [0, 2, 6, 14, 30]


def test_at_records_these_steps_whatever_their_category() -> None:
    schedule = at(0, 3, 4)
    assert _run(schedule, ["a", "b", None, "c", "a", "a"]) == [0, 3, 4]
    assert [step for step in range(6) if schedule.possible(step)] == [0, 3, 4]


def test_a_rule_for_each_category() -> None:
    schedule = as_schedule({"hard": 1, None: every(3)})
    assert _run(schedule, ["easy", "hard", "easy", "hard", "easy", "hard", None, "easy"]) == [0, 1, 3, 4, 5, 6, 7]


def test_a_category_without_a_rule_is_not_recorded() -> None:
    schedule = as_schedule({"hard": at(1, 2)})
    assert _run(schedule, ["hard", "hard", "easy", "hard"]) == [1]
    assert not schedule.possible(0)
    assert schedule.possible(1)


def test_a_function_of_step_and_category() -> None:
    asked: list[tuple[int, str | None]] = []

    def choose(step: int, category: str | None) -> bool:
        asked.append((step, category))
        return category == "a" and step > 1

    assert _run(as_schedule(choose), ["a", None, "a", "b"]) == [2]
    assert asked == [(0, "a"), (1, None), (2, "a"), (3, "b")]


@pytest.mark.parametrize("when", [None, 1, [0, 1, 2], {0, 1, 2}, lambda step, category: True, {None: 1}])
def test_every_form_is_taken(when: When) -> None:
    assert _run(as_schedule(when), ["a", "a", "a"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: every(0), "from 1"),
        (lambda: every(True), "from 1"),
        (lambda: every(2, backoff=0.5), "backoff=0.5"),
        (lambda: every(2, backoff=float("nan")), "backoff=nan"),
        (lambda: at(-1), "step -1"),
        (lambda: at(1.5), "step 1.5"),  # type: ignore[arg-type]
        (lambda: as_schedule("often"), "schedule='often'"),  # type: ignore[arg-type]
        (lambda: as_schedule({3: 1}), "not 3"),  # type: ignore[dict-item]
        (lambda: as_schedule(0), "from 1"),
        (lambda: as_schedule(2.5), "schedule=2.5"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_schedule_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
