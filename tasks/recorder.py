"""Key figures of someone else's training loop, by category of step.

    with Recorder(model, "module:*:output", out="runs/1", schedule=10) as recorder:
        for batch, kind in batches:
            with recorder.step(category=kind) as step:
                loss = criterion(model(batch))
                step.loss("task", loss)
                loss.backward()
                step.gradients("task")
                optimizer.step()
    Recording.load("runs/1").contrasts()

The loop stays the caller's: no number in it changes, and nothing that goes wrong in recording stops it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from crosslens.adapters.architectures import describe
from crosslens.adapters.errors import ClosedError, InputError, UnsupportedError
from crosslens.adapters.plan import Location, Point, locate
from crosslens.adapters.planning import SiteNames
from crosslens.adapters.sites import Site

from .recording import Recording
from .recording_figures import Figures, checked_kpis
from .recording_store import Record, Writer, as_table, read_parts, versions
from .recording_watch import UNNAMED, Watch
from .schedules import When, as_schedule

if TYPE_CHECKING:
    import pandas as pd

_SECONDS = 60.0  # a part is written at least so often, while steps come
_MOST_PROBLEMS = 100


class RecordingWarning(UserWarning):
    """Something could not be recorded; training goes on."""


class Step:
    """One training step while it runs, as `with recorder.step(...) as step` gives it.

    Attributes:
        number: from 0.
        category: may be set until the step ends; None for none.
        recorded: whether tensors are looked at; losses and scalars always are.
    """

    def __init__(self, number: int, category: str | None, watch: Watch | None) -> None:
        self.number = number
        self.recorded = watch is not None
        self._category = _checked_category(category)
        self._watch = watch
        self._iterations = 0
        self._place = (0, "")
        self._named: set[str] = set()
        self._labels: list[str] | None = None
        self._numbers: list[tuple[str, str, int, str, Any]] = []
        self._notes: list[str] = []
        self._dropped = False

    @property
    def category(self) -> str | None:
        """Of the step."""
        return self._category

    @category.setter
    def category(self, category: str | None) -> None:
        self._category = _checked_category(category)

    def discard(self) -> None:
        """Leave nothing of this step behind; it does not count for the schedule either."""
        self._dropped = True

    def samples(self, categories: Sequence[str]) -> None:
        """Category of each sample of the batch, the first axis of tensors; each then has figures of its own.

        Raises:
            InputError: not a list of texts; or the forward is over, and the recorder was not told `per_sample=True`.
        """
        if isinstance(categories, str) or not all(isinstance(each, str) and each for each in categories):
            raise InputError("step.samples() takes a list of texts, the category of each sample of the batch")
        watch = self._watch
        if watch is not None and not watch.samples:
            if watch.seen:
                raise InputError(
                    "step.samples() comes after the forward, when samples have no figures of their own any more; call "
                    "it before, or make Recorder(..., per_sample=True)"
                )
            watch.samples = True
        self._labels = list(categories)

    def loss(self, name: str, value: Tensor | float) -> None:
        """Record a loss under a name.

        Raises:
            InputError: it is not one real number, or has no name.
        """
        self._number("loss", name, value)

    def scalar(self, name: str, value: Tensor | float) -> None:
        """Record any other number of this step, such as a learning rate; errors as `loss`."""
        self._number("scalar", name, value)

    def note(self, text: str) -> None:
        """Keep a text with this step."""
        self._notes.append(str(text))

    def gradients(self, group: str) -> None:
        """Name the gradients that came since the step began, or since the last call: those of one loss, say.

        Those that no call names are the group "gradient".

        Raises:
            InputError: no text, or a group that this step has already.
        """
        if not isinstance(group, str) or not group:
            raise InputError(f"step.gradients() takes the name of a loss, not {group!r}")
        if group in self._named:
            raise InputError(f"this step has a group of gradients {group!r} already; give each a name of its own")
        self._named.add(group)
        if self._watch is not None:
            self._watch.name_gradients(group)

    @contextmanager
    def iteration(self, role: str = "") -> Iterator[int]:
        """What runs inside is one of several iterations of this step; gives its number, from 0.

        Args:
            role: what this iteration is for; free-form.

        Raises:
            InputError: inside another iteration, or a role that is no text.
        """
        if not isinstance(role, str):
            raise InputError(f"role={role!r}; it must be a text")
        if self._place[0] < 0:
            raise InputError("an iteration of this step is running; iterations follow one another")
        number = self._iterations
        self._iterations += 1
        before, self._place = self._place, (-1 - number, role)
        if self._watch is not None:
            self._watch.begin(number, role)
        try:
            yield number
        finally:
            self._place = before
            if self._watch is not None:
                self._watch.begin(self._iterations, "")

    def _number(self, kind: str, name: str, value: Tensor | float) -> None:
        if not isinstance(name, str) or not name:
            raise InputError(f"step.{kind}(name, value): the name is {name!r}; it must be a text")
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise InputError(f"{kind} {name!r} has shape {tuple(value.shape)}; it must be one real number")
            value = value.detach()
            number: Any = value.item() if value.is_cpu else value.clone()  # a number there is fetched when written
        else:
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise InputError(f"{kind} {name!r} is {value!r}; it must be one real number") from None
        place, role = self._place
        self._numbers.append((kind, name, -1 - place if place < 0 else place, role, number))


class Recorder:
    """Records activations, gradients, parameters, losses and scalars of a training loop, by category of step.

    Args:
        model: any module that is not compiled.
        sites: names and globs, such as "module:*:output"; canonical ones for a known family; () for none.
        out: a new or empty folder; None to keep all in memory.
        schedule: which steps; see `schedules`. Losses and scalars are recorded in every step.
        kpis: names from `recording_figures.KNOWN`; default those that cost one read of a tensor.
        parameters: whether to record parameters, as they are when the step begins, and their gradients.
        gradients: whether to record gradients.
        per_sample: figures of each sample in all recorded steps, so that `step.samples` may come after the forward.
        flush_every: steps in a part of the folder; a part is written once a minute too.
        memory: bytes of steps that are kept while the disk takes none; of later steps nothing is recorded.

    Raises:
        SiteError: a site that matches nothing; says which are near.
        InputError: an option or folder that cannot be used.
        UnsupportedError: the model, or a part of it, is compiled.
    """

    def __init__(
        self, model: nn.Module, sites: SiteNames = "module:*:output", out: str | Path | None = None,
        schedule: When = None, kpis: Sequence[str] | None = None, *, parameters: bool = True, gradients: bool = True,
        per_sample: bool = False, flush_every: int = 256, memory: int = 1 << 30,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise InputError(f"a Recorder takes a torch.nn.Module, not a {type(model).__name__}")
        if isinstance(flush_every, bool) or not isinstance(flush_every, int) or flush_every < 1:
            raise InputError(f"flush_every={flush_every!r}: it must be a whole number of steps, from 1")
        _refuse_compiled(model)
        self._model, self._sites = model, _places(model, sites)
        if not self._sites and not parameters:
            raise InputError("nothing to record: name sites, or let parameters=True")
        self._schedule, self._kpis = as_schedule(schedule), checked_kpis(kpis)
        self._options = (gradients, parameters)
        self._per_sample, self._flush_every, self._memory = per_sample, flush_every, memory
        self._figures = Figures(self._kpis)
        self._records: list[Record] = []
        self._held = self._lost = self._next = 0
        self._inside = self._closed = self._failing = False
        self.problems: list[str] = []
        facts = {
            "versions": versions(), "kpis": list(self._kpis), "sites": [site.name for site in self._sites],
            "model": type(model).__name__, "parameters": parameters, "gradients": gradients,
        }  # fmt: skip
        self._facts = facts
        self._writer = None if out is None else Writer(Path(out), facts)
        self._since = time.monotonic()

    @contextmanager
    def step(self, category: str | None = None) -> Iterator[Step]:
        """Record what runs inside as one step; steps count from 0. An error inside drops the step, and passes.

        Args:
            category: free-form; None where `step.category = ...` will say, or for none.

        Raises:
            ClosedError: after `close()`.
            InputError: inside another step, or a category that is no text.
        """
        if self._closed:
            raise ClosedError("this recorder is closed; make another")
        if self._inside:
            raise InputError("a step of this recorder is running; steps follow one another, none lies inside another")
        number, schedule = self._next, self._schedule
        _checked_category(category)
        looks = schedule.possible(number) if category is None else schedule.due(number, category)
        watch = None
        if looks and not self._lost:
            watch = Watch(self._model, self._sites, *self._options, self._figures, self._problem)
            watch.samples = self._per_sample
        step = Step(number, category, watch)
        self._next, self._inside = number + 1, True
        try:
            yield step
        except BaseException:
            step.discard()
            raise
        finally:
            self._inside = False
            if watch is not None:
                watch.close()
            step._watch = None
        if not step._dropped:
            self._keep(step, watch, late=category != step.category or category is None)

    def _keep(self, step: Step, watch: Watch | None, late: bool) -> None:
        record = Record(step.number, step.category, numbers=step._numbers, notes=step._notes)
        if watch is not None and (not late or self._schedule.due(step.number, step.category)):
            if self._sites and not watch.seen:
                site = next(iter(self._sites)).name
                self._problem(f"no site ran in a step: the model, or the module of {site!r}, was not called inside it, "
                              "or it was called compiled, which passes hooks by")  # fmt: skip
            watch.name_gradients(UNNAMED if UNNAMED not in step._named else "gradient (rest)")
            self._take(record, step, watch)
            self._schedule.recorded(step.number, step.category)
        elif not record.numbers and not record.notes:
            return
        if self._lost or (self._failing and self._held + record.nbytes > self._memory):
            self._lost += 1
        else:
            self._records.append(record)
            self._held += record.nbytes
        full = len(self._records) >= self._flush_every or time.monotonic() - self._since > _SECONDS
        if self._writer is not None and full and (not self._failing or time.monotonic() - self._since > 5):
            self.flush()

    def _take(self, record: Record, step: Step, watch: Watch) -> None:
        rows = [row for row, group in enumerate(watch.groups) if group is not None]
        record.keys = [watch.keys[row] for row in rows]
        record.groups = [group for group in watch.groups if group is not None]
        record.fields, record.over_batch, record.exact, samples = self._figures.taken(rows)
        if self._figures.owners:
            place = {row: i for i, row in enumerate(rows)}
            record.owners = [(place.get(row, -1), count) for row, count in self._figures.owners]
            record.samples, record.labels = samples, step._labels
            if step._labels is not None and all(count != len(step._labels) for _, count in record.owners):
                counts = sorted({count for _, count in record.owners})
                self._problem(
                    f"step {step.number} was given the categories of {len(step._labels)} samples, and its sites have "
                    f"{' and '.join(map(str, counts))} rows: they keep the category of the step"
                )

    def flush(self) -> None:
        """Write what is in memory. On an error it stays there, and is tried again; a warning says so, once."""
        self._since = time.monotonic()
        if self._writer is None or not self._records:
            return
        try:
            self._writer.write(self._records, self.problems)
        except OSError as error:
            self._fail(error)
            return
        self._records, self._held, self._failing = [], 0, False

    def _fail(self, error: OSError) -> None:
        assert self._writer is not None
        if not self._failing:
            self._failing = True
            warnings.warn(
                f"the recording cannot be written to {self._writer.path}: {error}; training goes on, steps are kept in "
                "memory, and writing is tried again", RecordingWarning, stacklevel=2,
            )  # fmt: skip

    def _problem(self, text: str) -> None:
        if text not in self.problems and len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)
            warnings.warn(f"not recorded: {text}", RecordingWarning, stacklevel=2)

    def recording(self) -> Recording:
        """All steps so far, those on disk and those in memory."""
        problems = self.problems + ([f"{self._lost} steps are lost: memory was full"] if self._lost else [])
        parts = []
        if self._writer is not None:
            parts = list(read_parts(self._writer.path, {"parts": self._writer.parts}, problems))
        if self._records:
            parts.append(as_table(self._records, self._kpis))
        return Recording(parts, dict(self._facts), self._closed and not self._failing and not self._lost, problems)

    def table(self, kinds: Sequence[str] | None = None) -> pd.DataFrame:
        """See `Recording.table`."""
        return self.recording().table(kinds)

    def contrasts(self, **options: Any) -> pd.DataFrame:
        """See `Recording.contrasts`."""
        return self.recording().contrasts(**options)

    def to_html(self, path: str | Path, **options: Any) -> None:
        """See `Recording.to_html`."""
        self.recording().to_html(path, **options)

    def close(self) -> None:
        """Write the rest. What was recorded can still be read from here. Closing twice is allowed."""
        if self._closed:
            return
        self._closed = True
        if self._writer is None:
            return
        self.flush()
        try:
            lost = [f"{self._lost} steps are lost: memory was full"] if self._lost else []
            self._writer.note(not self._records and not lost, self.problems + lost)
        except OSError as error:
            self._fail(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _places(model: nn.Module, sites: SiteNames) -> dict[Site, Location]:
    architecture = describe(model)
    found: dict[Site, Location] = {}
    for site in architecture.sites.resolve(sites):
        if site.kind == "native" or site.local == "attn.pattern":
            raise UnsupportedError(
                f"site {site.name!r}: a Recorder goes by what modules take and return; record module:NAME:output"
            )
        if site.kind == "module":
            found[site] = Location(Point(site.module.path, site.module.side))
        else:
            found[site] = locate(architecture.address(site), site, architecture.sizes)
    return found


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise UnsupportedError(
                f"{f'submodule {name!r}' if name else 'the model'} is compiled, and compiled code passes hooks by: "
                "record the model before torch.compile, or with sites=() its losses and scalars alone"
            )


def _checked_category(category: str | None) -> str | None:
    if category is not None and (not isinstance(category, str) or not category):
        raise InputError(f"the category is {category!r}; it must be a text that is not empty, or None")
    return category
