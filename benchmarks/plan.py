"""What a run will do, decided and checked before anything is done.

A cell is one backend on one task on one model, in a process of its own. Every (task, model) also has a reference
cell, which computes what the backends are compared with and must come first, and one backend under a second name (A/A):
what the two names differ by is what the run cannot tell.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Self

from crosslens.adapters import BackendNotInstalledError, InputError, Inspector, backends, load_backend
from crosslens.adapters.capabilities import check_capability
from crosslens.adapters.registry import GROUP
from crosslens.tasks import Task, known_models, load_model, load_task, tasks
from crosslens.tasks.base import Size
from crosslens.tasks.models import DEFAULT_MODEL

from .environment import threads
from .studies import STUDIES, checked
from .timing import Sampling
from .warm import can_fork

CellKind = Literal["reference", "backend"]
AGAIN = " (A/A)"
"""Ends the second name of the backend that runs under two."""
DTYPE = "float32"
ATTENTION = "sdpa"
CPU = "cpu"
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Suite:
    """How much a run does.

    Args:
        backends: names; None stands for every one that this distribution brings.
        models: model names.
        size: of each task's workload.
        sampling: how many timing samples a cell takes.
        repeats: processes for each (backend, task, model).
        timeout: seconds that one cell may take.
        jobs: cells at a time, each on cores of its own; None for one on every core.
        studies: what is measured beside the cells; see `studies.py`.
        warm: fork the processes from one that has imported what they need, where the system can; see `warm.py`.
    """

    backends: tuple[str, ...] | None
    models: tuple[str, ...]
    size: Size
    sampling: Sampling
    repeats: int
    timeout: float
    jobs: int | None
    studies: tuple[str, ...] = ()
    warm: bool = False


QUICK = ("hooks", "transformer_lens", "nnsight")
_SAMPLING = Sampling(pairs=6, most=30, seconds=3.0)
SUITES = {
    "smoke": Suite(
        QUICK, ("tiny-llama",), "smoke", Sampling(pairs=12, most=12, seconds=1.0), 1, 120.0, None, warm=True
    ),
    # all backends in half an hour on 2 cores
    "default": Suite(None, (DEFAULT_MODEL,), "default", _SAMPLING, 1, 1200.0, None),
    # the same work in several processes, which differ by more than samples do, each alone on the machine; and studies
    "full": Suite(None, (DEFAULT_MODEL,), "default", _SAMPLING, 3, 7200.0, 1, tuple(STUDIES)),
}


@dataclass(frozen=True)
class Cell:
    """One process's work; `backend` is None for the reference."""

    id: str
    kind: CellKind
    backend: str | None
    task: str
    model: str
    repeat: int

    @property
    def of(self) -> tuple[str, str]:
        """What its reference is the reference of."""
        return self.task, self.model

    @property
    def implementation(self) -> str | None:
        """The backend that runs, whatever its name in this run."""
        return self.backend and implementation(self.backend)

    def __str__(self) -> str:
        who = self.backend or "reference"
        again = f" ({self.repeat})" if self.repeat > 1 else ""
        return f"{who} · {self.task} on {self.model}{again}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a run does; `run.json` keeps it as `arguments`.

    Args:
        skipped: backend -> why it is left out although the suite would include it.
        device: where models are, as PyTorch names it.
    """

    suite: str
    size: Size
    backends: tuple[str, ...]
    skipped: dict[str, str]
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    sampling: Sampling
    repeats: int
    timeout: float
    seed: int
    threads: int
    jobs: int = 1
    studies: tuple[str, ...] = ()
    dtype: str = DTYPE
    attn_implementation: str = ATTENTION
    warm: bool = False
    device: str = CPU

    @property
    def again(self) -> str | None:
        """The second name of the backend that runs under two: native hooks where they run, else the first."""
        return next((f"{name}{AGAIN}" for name in ("hooks", *self.backends) if name in self.backends), None)

    def pairs(self) -> list[tuple[str, str]]:
        """Every (task, model): the task's own model, if it has one, in place of those of the run."""
        own = {task: find_task(task).models for task in self.tasks}
        return [
            (task, model) for task in self.tasks for model in ((own[task][self.size],) if own[task] else self.models)
        ]

    def cells(self) -> list[Cell]:
        """The references, then every backend cell in an order drawn from the seed; ids are unique file names."""
        pairs = self.pairs()
        names = (*self.tasks, *dict.fromkeys(model for _, model in pairs))
        label = dict(zip(names, _labels(names), strict=True))
        first = [Cell(f"{label[t]}.{label[m]}.reference", "reference", None, t, m, 1) for t, m in pairs]
        rest = [
            Cell(f"{label[t]}.{label[m]}.{backend.replace(AGAIN, '-again')}.{repeat}", "backend", backend, t, m, repeat)
            for t, m in pairs
            for backend in (*self.backends, *filter(None, [self.again]))
            for repeat in range(1, self.repeats + 1)
        ]
        random.Random(self.seed).shuffle(rest)
        return first + rest

    def facts(self) -> dict[str, Any]:
        """The plan as JSON."""
        return asdict(self)

    def grown(self, repeats: int | None, study: Sequence[str]) -> Self:
        """The same with so many processes for each cell, and these studies as well.

        Raises:
            InputError: there are more processes already, or an unknown study.
        """
        repeats = self.repeats if repeats is None else repeats
        if repeats < self.repeats:
            raise InputError(f"--repeats is {repeats}; this run has {self.repeats}, and what it has is kept")
        return replace(self, repeats=repeats, studies=checked([*self.studies, *study]))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """The plan that `facts` wrote.

        Raises:
            InputError: they are of another version.
        """
        try:
            lists = {name: tuple(facts[name]) for name in ("backends", "tasks", "models", "studies")}
            return cls(**{**facts, **lists, "sampling": Sampling(**facts["sampling"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"the settings in run.json are of another version of crosslens: {error}") from error


def implementation(name: str) -> str:
    """The backend behind a name of a run: the A/A control's is the one that it is the second name of."""
    return name.removesuffix(AGAIN)


def make_plan(
    suite: str,
    *,
    backend: Sequence[str] = (),
    task: Sequence[str] = (),
    model: Sequence[str] = (),
    repeats: int | None = None,
    timeout: float | None = None,
    seed: int = 0,
    jobs: int | None = None,
    study: Sequence[str] = (),
    device: str | None = None,
) -> Plan:
    """The plan for these arguments; what is not given comes from the suite.

    Raises:
        InputError: an unknown suite, backend, task, model or device, or a number out of range; whether the device is
            there, `executors.joined` sees.
        BackendNotInstalledError: a backend that was asked for by name lacks its library.
        ModelError: a model name that is unknown; folders and hub ids are looked at by `fetch_models`.
    """
    chosen = SUITES[known("suite", suite, SUITES)]
    repeats = chosen.repeats if repeats is None else repeats
    timeout = chosen.timeout if timeout is None else timeout
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}; it must be 1 or more")
    if not timeout > 0:
        raise InputError(f"--timeout is {timeout}; it must be a number of seconds above 0")
    device = CPU if device is None else device
    if not _DEVICE.fullmatch(device):
        raise InputError(f"--device is {device!r}; it must be cpu, cuda, or one of several GPUs, as cuda:1")
    cores = threads()
    most = chosen.jobs if device == CPU else 1  # cells on one GPU would disturb each other
    jobs = jobs if jobs is not None else most if most is not None else cores
    if not 1 <= jobs <= cores:
        raise InputError(f"--jobs is {jobs}; it must be 1 to {cores}, the cores here, since every cell gets its own")
    for name in task:
        find_task(name)
    studies = checked(study)
    usable, skipped = _usable_backends(backend, chosen.backends or built_in_backends())
    wanted = tuple(dict.fromkeys(model)) or chosen.models
    refuse_unknown_models(wanted)
    return Plan(
        suite=suite,
        size=chosen.size,
        backends=usable,
        skipped=skipped,
        tasks=tuple(dict.fromkeys(task)) or tuple(task_names()),
        models=wanted,
        sampling=chosen.sampling,
        repeats=repeats,
        timeout=timeout,
        seed=seed,
        threads=cores // jobs,
        jobs=jobs,
        warm=chosen.warm and can_fork() and device == CPU,  # CUDA does not outlive a fork
        device=device,
        studies=studies or (() if backend or task or model else chosen.studies),
    )


def known(what: str, name: str, names: Collection[str]) -> str:
    """The name, if it is one of `names`.

    Raises:
        InputError: it is not; names the nearest.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"there is no {what} {name!r}; {hint}known: {', '.join(names)}")


def task_names() -> list[str]:
    """Names of the registered tasks."""
    return [entry if isinstance(entry, str) else entry.name for entry in tasks()]


def find_task(name: str) -> Task:
    """A registered task, or one of the caller's own written `package.module:Class`.

    Raises:
        InputError: there is no such task; names the nearest.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        try:
            return load_task(name)
        except InputError as error:
            raise InputError(f"{error}; your own is package.module:Class") from None
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the caller's own module raises
        raise InputError(
            f"task {name!r} cannot be imported: {type(error).__name__}: {error}; write it package.module:Class, of a "
            "package that is installed or on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise InputError(f"task {name!r} is no subclass of crosslens.tasks.Task")
    said = ("name", "question", "source", "categories", "data", "needs")
    if lacking := [*sorted(found.__abstractmethods__), *(each for each in said if not hasattr(found, each))]:
        raise InputError(f"task {name!r} lacks {', '.join(lacking)}: crosslens.tasks.Task says what each is")
    for need in itertools.chain(found.needs, *found.needs_any):
        check_capability(need, f"what task {name!r} needs")
    return found()


def why_not(task: Task, backend: type[Inspector]) -> str | None:
    """Why a backend cannot do a task: the capabilities that it lacks, by reason; None where it can."""
    states = backend.supports()
    lacking: dict[str, list[str]] = {}
    for need in task.lacks(states):
        lacking.setdefault(f"({states[need].state}): {states[need].reason}", []).append(need)
    return "; ".join(f"{', '.join(needs)} {why}" for why, needs in lacking.items()) or None


def built_in_backends() -> list[str]:
    """The backends that this distribution brings, whether their libraries are installed or not."""
    ours = {e.name for e in entry_points(group=GROUP) if e.value.startswith("crosslens.adapters.")}
    return [name for name in backends() if name in ours]


def refuse_unknown_models(names: Iterable[str]) -> None:
    """Raise for a name that is none of `known_models()`, no folder and no hub id; loads and fetches nothing.

    Raises:
        ModelError: names the nearest.
    """
    registered = {entry.name for entry in known_models()}
    for name in names:
        if name not in registered and "/" not in name and not Path(name).is_dir():
            load_model(name)


def fetch_models(names: Iterable[str]) -> None:
    """Make sure, before any cell runs, that every model is on this disk and can be loaded.

    Raises:
        ModelError, InputError: one is not or cannot; says why.
    """
    here = {entry.name for entry in known_models() if entry.cached}
    for name in names:
        if name not in here:
            load_model(name)


def _usable_backends(asked: Iterable[str], otherwise: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Backends to run, and those to skip with the reason; one that was asked for is never skipped."""
    named = tuple(dict.fromkeys(asked))
    skipped: dict[str, str] = {}
    for name in named or otherwise:
        try:
            load_backend(name)
        except BackendNotInstalledError as error:
            if named:
                raise
            skipped[name] = str(error)
        except InputError:
            raise
        except Exception:
            continue  # a library that is there and broken: its cells will say how
    return tuple(name for name in named or otherwise if name not in skipped), skipped


def _labels(names: Iterable[str]) -> list[str]:
    """Names as parts of file names, different for different names, whatever the file system makes of case."""
    labels: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w-]+", "-", name).strip("-") or "unnamed"
        candidates = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        taken = {label.lower() for label in labels}
        labels.append(next(c for c in candidates if c.lower() not in taken))
    return labels
