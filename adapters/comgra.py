"""comgra: its recorder of key figures by category, around the caller's own training loop.

comgra takes the key figures, keeps the schedule of each category and writes the files. What it never gets is a tensor
of the caller's: it sets `requires_grad` on what it is handed (which unfreezes parameters), reads `.grad` whatever
backward it is from, and stores 0 where there is none. It gets the copies of `snapshots.py`, with the gradients of this
step alone, when the step is over. Its graph of dependencies is not kept: the copies hang on no graph.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from comgra.objects import DecisionMakerForRecordings

from .capabilities import CAPABILITIES, Support
from .comgra_steps import ComgraTrial, When, as_schedule, escape, read_table
from .errors import ClosedError, InputError, SiteError, UnsupportedError
from .inspector import Inspector
from .plan import Location, Plan
from .planning import SiteNames
from .recording import Recording, Step
from .sites import Site
from .snapshots import Snapshot, Snapshots
from .state import contained

if TYPE_CHECKING:
    import pandas as pd


def _cannot() -> dict[str, Support]:
    kept = ("record", "coexist")
    reason = "comgra records key figures of a training step; it gives no tensor back, edits none and runs no model"
    padding = Support(
        "upstream", "comgra knows no mask: its key figures pool whatever lies on the axes beside the batch"
    )
    others = (name for name in CAPABILITIES if name not in kept and not name.startswith("family."))
    return {name: padding if name.startswith("padding.") else Support("never", reason) for name in others}


class ComgraInspector(Inspector):
    """comgra's recorder on the caller's model."""

    name: ClassVar[str] = "comgra"
    library: ClassVar[str | None] = "comgra"
    unsupported: ClassVar[dict[str, Support]] = _cannot()

    def _open(self) -> None:
        self._recordings: weakref.WeakSet[ComgraRecording] = weakref.WeakSet()

    def _release(self) -> None:
        for recording in list(self._recordings):
            recording.close()

    def _forward(self, plan: Plan) -> Any:
        raise UnsupportedError(
            f"backend {self.name!r} records training steps (lens.record) and does nothing else; `crosslens backends` "
            "shows which capture and edit a forward"
        )

    def record(
        self,
        sites: SiteNames,
        *,
        out: str | Path | None = None,
        gradients: bool = True,
        parameters: bool = True,
        per_sample: int = 0,
        when: When = 1,
        svd: bool = False,
        **unknown: Any,
    ) -> ComgraRecording:
        """Record key figures of training steps by category; a step costs a copy of everything recorded.

        A tensor's key figures are comgra's: `mean`, `abs_mean`, `std` (unbiased; 0 of a single number) and `abs_max`
        over all axes but the first, for each sample; then `batch_mean`, `batch_std` (unbiased; NaN of one sample) and
        `batch_abs_max` of these over the first axis, however long it is at the site. They are taken in the tensor's
        dtype, or in float32 where that is shorter.

        Args:
            sites: sites or globs; every tensor in what a module returns is recorded under a name of its own, and every
                call of a module that runs several times. May be empty where parameters are recorded.
            out: a new or empty folder for comgra's files; a temporary one that goes with the recording unless told.
            gradients: record the gradients of sites and parameters too: what all backwards inside the step added up.
            parameters: record all parameters too, as they are when the step begins.
            per_sample: keep the figures of this many samples of each batch too.
            when: which steps are recorded: n, those that come n or more after the last recorded one of their category;
                a collection of step numbers; or a function of step number and category.
            svd: the largest singular value of parameters with two axes, and of their gradients, too; slow.

        Raises:
            SiteError: as in `run`; `native:` sites.
            UnsupportedError: `attn.pattern`, which no module takes or returns under every attention.
            InputError: an option that cannot be; a folder that holds something.
            ClosedError: after `close()`.
        """
        self._check_open()
        if unknown:
            raise InputError(f"record() has no option {next(iter(unknown))!r}; options: out, gradients, parameters, "
                             "per_sample, when, svd")  # fmt: skip
        places = {site: self._place(site) for site in self._resolve(sites)}
        if not places and not parameters:
            raise InputError("nothing to record: name sites, or let parameters=True")
        if not isinstance(per_sample, int) or isinstance(per_sample, bool) or per_sample < 0:
            raise InputError(f"per_sample={per_sample!r}; it must be a whole number, 0 for none")
        schedule = as_schedule(when)
        recording = ComgraRecording(self, places, _folder(out), gradients, parameters, per_sample, schedule, svd)
        self._recordings.add(recording)
        return recording

    def _place(self, site: Site) -> Location:
        if site.local == "attn.pattern":
            raise UnsupportedError(
                f"site {site.name!r}: attention after softmax is made inside a module; a model with eager attention "
                "returns it, so record the output of its attention modules, module:PATH:output"
            )
        return self._locate(site)


class ComgraRecording(Recording):
    """Key figures by category in comgra's files, a comgra trial for each number of rows.

    Attributes:
        folder: where they lie: `rows-N/trials/steps/recordings/STEP__CATEGORY/*.msgpack`.
    """

    def __init__(
        self, lens: ComgraInspector, sites: dict[Site, Location], folder: Path | None, gradients: bool,
        parameters: bool, per_sample: int, schedule: DecisionMakerForRecordings, svd: bool,
    ) -> None:  # fmt: skip
        self._lens = lens
        self._sites = sites
        self._options = (gradients, parameters)
        self._per_sample = per_sample
        self._schedule = schedule
        self._svd = svd
        self._trials: dict[int, ComgraTrial] = {}
        self._next = 0
        self._inside = False
        self._closed = False
        self.folder = folder or Path(tempfile.mkdtemp(prefix="crosslens-comgra-"))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @contextmanager
    def step(self, category: str | None = None, samples: Sequence[str] | None = None) -> Iterator[Step]:
        """See `Recording.step`; a module that runs k times makes k calls, a checkpointed one is called again backward.

        Raises:
            SiteError: at the end, no site ran; or in the forward, a tensor that has no key figures.
            InputError: as in `Recording.step`; at the end, the files cannot be written (the steps before stay).
        """
        self._lens._check_open()
        if self._closed:
            raise ClosedError("this recording is closed; start another with lens.record(...)")
        if self._inside:
            raise InputError("a step of this recording is running; steps follow one another, none lies inside another")
        seen: Snapshots | None = Snapshots(self._lens.model, self._sites, *self._options, self._lens._device)
        step = Step(self._next, seen, self._check)
        if category is not None:
            step.decide(category, samples)
            if not self._schedule.is_record_on_this_step(step.number, escape(category)):
                step.seen = seen = None
        elif samples is not None:
            raise InputError("samples= comes with a category; say both to step.decide()")
        self._next += 1
        self._inside = True
        try:
            with nullcontext() if seen is None else seen.watching():
                yield step
            if seen is not None and not self._closed:
                self._end(step, seen, late=category is None)
        finally:
            self._inside = False
            step.release()

    def _end(self, step: Step, seen: Snapshots, late: bool) -> None:
        if not step.decided:
            raise InputError(f"step {step.number} has no category; step.decide(NAME), or step.decide(None) to drop it")
        if step.category is None:
            return
        category = escape(step.category)
        if not late or self._schedule.is_record_on_this_step(step.number, category):
            self._keep(step, category, seen)
            self._schedule.mark_recording_on_this_step(step.number, category)

    def _check(self, category: str, samples: Sequence[str] | None) -> None:
        escape(category)
        if samples is not None and not self._per_sample:
            raise InputError("samples= says whose figures are kept; of how many, lens.record(..., per_sample=N) says")

    def _keep(self, step: Step, category: str, seen: Snapshots) -> None:
        if self._sites and not seen.activations:
            raise SiteError(
                f"no site ran in step {step.number}: the model, or the module of {next(iter(self._sites)).name!r}, was "
                "not called inside it, or returned no tensor"
            )
        rows: dict[int, list[Snapshot]] = {}
        for snapshot in seen.activations.values():
            rows.setdefault(len(snapshot.value), []).append(snapshot)
        if step.samples is not None and len(step.samples) not in rows:
            raise InputError(
                f"step {step.number} was given the categories of {len(step.samples)} samples, and its sites have "
                f"{' and '.join(map(str, rows))} rows"
            )
        groups, parameters = step.groups(), list(seen.parameters.values())
        losses = {name: value.to(self._lens._device) for name, value in step.losses.items()}
        trials = []
        try:
            for count, snapshots in (rows or {1: []}).items():
                if count not in self._trials:
                    self._trials[count] = ComgraTrial(self.folder, count, self._per_sample, self._svd)
                trials.append(self._trials[count])
                with contained(self._lens._device):
                    trials[-1].write(step.number, category, step.samples, snapshots, parameters, losses, groups)
                parameters, losses = [], {}  # in one trial only
            for trial in trials:
                trial.publish()
        except OSError as error:
            raise InputError(f"step {step.number} cannot be written to {self.folder}: {error}") from error
        finally:
            for trial in trials:
                trial.clean()

    def table(self) -> pd.DataFrame:
        """One figure a row, all steps so far: see `comgra_steps.read_table`."""
        return read_table(self.folder)

    def close(self) -> None:
        """See `Recording.close`; a temporary folder stays until nothing refers to this recording."""
        self._closed = True


def _folder(out: str | Path | None) -> Path | None:
    """A new or empty folder, made: comgra deletes what lies under its names."""
    if out is None:
        return None
    path = Path(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = next(path.iterdir(), None)
    except OSError as error:
        raise InputError(f"out={str(out)!r} cannot be made or read as a folder: {error}") from error
    if held is not None:
        raise InputError(f"out={str(out)!r} holds {held.name!r}; a recording needs a new or empty folder of its own")
    return path
