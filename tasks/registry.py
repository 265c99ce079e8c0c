"""The tasks by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from crosslens.adapters.errors import InputError

from .agreement import Agreement
from .base import Task
from .characters import Characters
from .encoder import Encoder
from .facts import Facts
from .generation import Generation
from .induction import Induction
from .ioi import IOI
from .lens import Lens
from .neurons import Neurons
from .planted import Planted
from .probe import Probe
from .saliency import Saliency
from .steering import Steering
from .training import TrainingSteps

_TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {
        task.name: task
        for task in (
            IOI,
            Characters,
            Encoder,
            Induction,
            Agreement,
            Facts,
            Neurons,
            Lens,
            Steering,
            Saliency,
            Probe,
            Generation,
            TrainingSteps,
            Planted,
        )
    }
)


def tasks() -> list[Task]:
    """Every task that `load_task` knows, in the order in which they are run."""
    return [task() for task in _TASKS.values()]


def load_task(name: str) -> Task:
    """A task by name.

    Raises:
        InputError: there is no such task; names the nearest.
    """
    if name not in _TASKS:
        near = difflib.get_close_matches(name, _TASKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no task {name!r}; {hint}known: {', '.join(_TASKS)}")
    return _TASKS[name]()
