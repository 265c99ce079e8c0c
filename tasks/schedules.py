"""Which steps are recorded: a rule for each category of step.

every(10)                       the first of a category, then those that come 10 or more after its last recorded one
every(10, backoff=1.5)          the gap grows by half each time
at(0, 10, 100)                  these steps
a function (step, category)     whatever it says
{"hard": 1, None: every(100)}   a rule a category; that of None is for all others, default none of them
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from crosslens.adapters.errors import InputError

_LONGEST = 1e15  # steps; a gap of more stays countable


class Schedule(ABC):
    """A rule; it keeps what it was told of each category."""

    def possible(self, step: int) -> bool:
        """Whether a step of a category that is not known yet may be due; if not, nothing of it is looked at."""
        return True

    @abstractmethod
    def due(self, step: int, category: str | None) -> bool:
        """Whether a step of this category is to be recorded."""

    def recorded(self, step: int, category: str | None) -> None:  # noqa: B027  most rules have nothing to keep
        """A step was recorded."""


When: TypeAlias = (
    "int | Collection[int] | Callable[[int, str | None], bool] | Schedule | Mapping[str | None, When] | None"
)


class _Every(Schedule):
    def __init__(self, gap: float, backoff: float) -> None:
        self._first, self._backoff = gap, backoff
        self._next: dict[str | None, int] = {}
        self._gap: dict[str | None, float] = {}

    def due(self, step: int, category: str | None) -> bool:
        return step >= self._next.get(category, 0)

    def recorded(self, step: int, category: str | None) -> None:
        gap = self._gap.get(category, self._first) * self._backoff  # grown before its first use: as comgra
        gap = min(gap, _LONGEST)
        self._next[category] = step + math.ceil(gap)
        self._gap[category] = gap


class _At(Schedule):
    def __init__(self, steps: Collection[int]) -> None:
        self._steps = frozenset(steps)

    def possible(self, step: int) -> bool:
        return step in self._steps

    def due(self, step: int, category: str | None) -> bool:
        return step in self._steps


class _Chosen(Schedule):
    def __init__(self, choose: Callable[[int, str | None], bool]) -> None:
        self._choose = choose

    def due(self, step: int, category: str | None) -> bool:
        return bool(self._choose(step, category))


class _ByCategory(Schedule):
    def __init__(self, rules: Mapping[str | None, Schedule]) -> None:
        self._rules = dict(rules)
        self._others = self._rules.get(None, _At(()))

    def _rule(self, category: str | None) -> Schedule:
        return self._others if category is None else self._rules.get(category, self._others)

    def possible(self, step: int) -> bool:
        return any(rule.possible(step) for rule in self._rules.values())

    def due(self, step: int, category: str | None) -> bool:
        return self._rule(category).due(step, category)

    def recorded(self, step: int, category: str | None) -> None:
        self._rule(category).recorded(step, category)


def every(n: int, *, backoff: float = 1.0) -> Schedule:
    """The first step of each category, and each that comes `n` or more after its last recorded one.

    Args:
        n: gap in steps, from 1; those of other categories count.
        backoff: the gap is multiplied by it at each recorded step, the first included, from 1.

    Raises:
        InputError: a number out of range.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"every({n!r}): the gap must be a whole number of steps, from 1")
    if not (isinstance(backoff, int | float) and 1 <= backoff < math.inf):
        raise InputError(f"backoff={backoff!r}: it multiplies the gap, so it must be a number from 1")
    return _Every(n, float(backoff))


def at(*steps: int) -> Schedule:
    """These steps alone, whatever their category; steps count from 0.

    Raises:
        InputError: one that is no whole number from 0.
    """
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise InputError(f"step {step!r} in a schedule: steps are whole numbers, from 0")
    return _At(steps)


def as_schedule(when: When) -> Schedule:
    """The rule that is meant; None is every step.

    Raises:
        InputError: none of the forms at the top of this module.
    """
    if when is None:
        return every(1)
    if isinstance(when, Schedule):
        return when
    if isinstance(when, int) and not isinstance(when, bool):
        return every(when)
    if isinstance(when, Mapping):
        for category in when:
            if category is not None and not isinstance(category, str):
                raise InputError(f"schedule: a category is a text, or None for all others, not {category!r}")
        return _ByCategory({category: as_schedule(rule) for category, rule in when.items()})
    if isinstance(when, Collection) and not isinstance(when, str | bytes):
        return at(*when)
    if callable(when):
        return _Chosen(when)
    raise InputError(
        f"schedule={when!r}; give n for every n steps, the numbers of steps, every(...), at(...), a function of step "
        "and category, or one of these for each category"
    )
