"""Training: which layer is sick, in whose steps, and since when?

Small nets are trained while key figures of every layer's output and gradient are recorded by category of step: which of
two workers made it. In some runs nothing is wrong; in the others one worker falls ill halfway (`training_nets.py`).
A fault in the forward shows in activations from its layer on, one in the backward in gradients from its layer back: so
the place is the first layer whose activation differs between the workers, else the last whose gradient does.

Two backends record: `comgra`, by its own recorder (`Inspector.record`), and `hooks`, which stands for PyTorch alone, by
`crosslens.tasks.Recorder`. The task brings its own nets, whatever model it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from crosslens.adapters import Inspector, UnsupportedError

from . import statistics
from .base import Known, Progress, Result, Score, Size, Task
from .recorder import Recorder
from .scoring import judged
from .training_nets import MOMENTUM, RATE, WORKERS, Net, Training, trainings

STEPS: Mapping[Size, int] = MappingProxyType({"smoke": 120, "default": 240, "full": 480})
KINDS = ("activation", "gradient")
FIGURES = ("abs_mean/batch_mean", "std/batch_mean", "abs_max/batch_abs_max")
STRETCHES = 4
LEAST_P, LEAST_G = 0.01, 1.0
RECENT, OUTLYING = 20, 5.0
_GROWTH = 1e4  # of rounding, through hundreds of steps that each begin where the last one ended

Array = NDArray[np.float64]
Loss = Callable[[Tensor], None]
StepOf = Callable[[str], AbstractContextManager[Loss]]


@dataclass(frozen=True)
class Work:
    """The runs."""

    trainings: list[Training]


@dataclass(frozen=True)
class Finding:
    """What a run's recording shows.

    Attributes:
        kind, module: the place; empty where the workers do not differ.
        figure: the figure there that tells them apart best.
        g: by how much, in standard deviations within workers, in the stretch where they differ most.
        steps: those in which it lies out of line.
    """

    kind: str
    module: str
    figure: str
    g: float
    steps: frozenset[int]


class TrainingSteps(Task):
    """Result, for each run N, in the order of `Work.trainings`:

    figures N (step, module, kind, figure): in the order of `Net.sites`, `KINDS` and `FIGURES`. A figure is comgra's:
        the mean size, standard deviation (unbiased) and largest size of each sample, then their mean over the batch,
        or the largest.
    loss N (step,): cross-entropy, nats.
    differences (run, stretch, module, kind, figure): Hedges' g of worker 1 against worker 2 in each of `STRETCHES`
        equal parts of the run, of the figures' logarithms; NaN where the run's net has no such module.
    """

    name: ClassVar[str] = "training"
    question: ClassVar[str] = "Which layer is sick, in whose training steps, and since when?"
    source: ClassVar[str] = (
        "recording by category of step, as in comgra; modular addition: Nanda et al. 2023, arXiv:2301.05217; steps out "
        "of line: Hampel 1974, doi:10.1080/01621459.1974.10482962"
    )
    categories: ClassVar[str] = "the training steps of two workers, one of which falls ill in some runs"
    data: ClassVar[str] = "sums modulo 23; the digits of scikit-learn (UCI, Alpaydin & Kaynak 1998), CC-BY-4.0"
    needs: ClassVar[tuple[str, ...]] = ()
    needs_any: ClassVar[tuple[tuple[str, ...], ...]] = (("record",), ("capture.module", "gradients"))
    models: ClassVar[Mapping[Size, str]] = MappingProxyType(
        {"smoke": "tiny-llama", "default": "tiny-llama", "full": "tiny-llama"}
    )
    known_on: ClassVar[tuple[str, ...]] = ("tiny-llama",)

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The nets and batches; neither the model nor its tokenizer takes part."""
        return Work(trainings(STEPS[size]))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """Train each net under the recorder of the backend.

        Raises:
            UnsupportedError: a backend that has none and is not PyTorch's own hooks.
        """
        out: dict[str, Array] = {}
        for number, training in enumerate(work.trainings):
            net, reader = training.net(_device(lens.model)), _reader(lens)
            with reader(net) as (step, table):
                _train(net, training, step, _counted(progress, number, work))
                _fill(out, number, training, table())
        return _compared(out, work)

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By hand: hooks that keep each output, `autograd.grad`, momentum written out, figures by NumPy."""
        out: dict[str, Array] = {}
        for number, training in enumerate(work.trainings):
            net, seen = training.net(), dict[str, Tensor]()
            for name in net.sites:
                net.get_submodule(name).register_forward_hook(_keeping(seen, name))
            parameters = list(net.parameters())
            momenta = [torch.zeros_like(parameter) for parameter in parameters]
            figures, losses = [], []
            count = _counted(progress, number, work)
            for i, (x, y) in enumerate(training.batches):
                net.ill = training.faulty and i in training.sick
                value = -net(x).log_softmax(-1)[torch.arange(len(y)), y].mean()
                tensors = [seen[name] for name in net.sites]
                grads = torch.autograd.grad(value, [*tensors, *parameters])
                pairs = zip(tensors, grads, strict=False)
                figures.append([[_figures(tensor), _figures(grad)] for tensor, grad in pairs])
                losses.append(float(value.detach()))
                with torch.no_grad():
                    for parameter, momentum, grad in zip(parameters, momenta, grads[len(tensors) :], strict=True):
                        momentum.mul_(MOMENTUM).add_(grad)
                        parameter.sub_(RATE * momentum)
                count(i)
            out[f"figures {number}"], out[f"loss {number}"] = np.array(figures), np.array(losses)
        return _compared(out, work)

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Figures are held to the largest element of their kind at their module in any step, losses to the largest.

        The nets are float64 whatever the dtype of the run. The effect is that of the weakest fault at its place.
        """
        scales: dict[str, Any] = {"differences": np.nanmax(np.abs(reference["differences"]))}
        effects = []
        for number, training in enumerate(work.trainings):
            values, loss = reference[f"figures {number}"], reference[f"loss {number}"]
            scale = values[..., -1].max(axis=0)  # module, kind
            scales |= {f"figures {number}": scale[None, :, :, None], f"loss {number}": loss.max()}
            if training.place is not None:
                kind, module = training.place
                at = _sites(training).index(module), KINDS.index(kind)
                size = values[:, at[0], at[1], FIGURES.index("abs_mean/batch_mean")]
                ill = np.isin(np.arange(len(size)), list(training.sick))
                effects.append(abs(size[ill].mean() - size[~ill].mean()) / scale[at])
        return judged(
            result, reference, scales, "float64", ranking="differences", effect=min(effects), growth=_GROWTH
        )  # fmt: skip

    def known(self, reference: Result, work: Work) -> Known:
        """What was planted is known: its place, and in whose steps, for faults inside the net.

        Mislabelled batches are named by their place alone. The gradient at the head shrinks for the well worker, whose
        steps are then the ones that lie out of line with those before them.
        """
        wrong, found = [], []
        for number, training in enumerate(work.trainings):
            finding = diagnose(reference, number, training)
            named = (finding.kind, finding.module) if finding.module else None
            hits = len(finding.steps & training.sick)
            inside = training.place is not None and training.faulty
            missed = inside and (hits < 0.9 * len(finding.steps) or hits < 0.75 * len(training.sick))
            if named != training.place or missed:
                wrong.append(training.name)
            found.append(f"{training.name}: {_told(finding, training)}")
        return Known(
            "nothing is named in healthy runs; elsewhere the layer at which the fault was planted, and for faults "
            "inside the net 3 in 4 of its steps or more, with no more than 1 in 10 others",
            "; ".join(found) + (f"; wrong: {', '.join(wrong)}" if wrong else ""),
            not wrong,
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One recorded training step of the last run's net."""
        training = work.trainings[-1]
        net = training.net(_device(lens.model))
        reader = _reader(lens)(net)
        begin, _ = reader.__enter__()  # open for as long as the step is
        optimizer = _optimizer(net)

        def step() -> Any:
            with begin(training.workers[0]) as loss:
                _forth_and_back(net, optimizer, *training.batches[0], loss)
            return reader  # kept alive with the step

        return step

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        """The same training step, which nobody records."""
        training = work.trainings[-1]
        net = training.net(_device(model))
        optimizer = _optimizer(net)
        return lambda: _forth_and_back(net, optimizer, *training.batches[0], lambda loss: None)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (run, stretch, module, kind, figure): g, and whether the fault was planted there."""
        return pd.DataFrame(
            [
                {
                    "run": training.name,
                    "stretch": stretch,
                    "kind": kind,
                    "module": module,
                    "figure": figure,
                    "g": float(result["differences"][number, stretch, m, k, f]),
                    "planted": training.place == (kind, module),
                }
                for number, training in enumerate(work.trainings)
                for stretch in range(STRETCHES)
                for m, module in enumerate(_sites(training))
                for k, kind in enumerate(KINDS)
                for f, figure in enumerate(FIGURES)
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        found = (
            f"{training.name}: {_told(diagnose(result, number, training), training)}"
            for number, training in enumerate(work.trainings)
        )
        return "; ".join(found)


def diagnose(result: Result, number: int, training: Training) -> Finding:
    """Where the workers of a run differ first, and the steps that lie out of line there.

    A place differs where in any stretch p, adjusted over all its figures (max-T, 2000 permutations) and for the number
    of stretches, is below `LEAST_P`, and |g| above `LEAST_G`. A step is out of line where the figure's logarithm is
    farther than `OUTLYING` spreads (scaled median absolute deviations) from the median of the `RECENT` steps before it
    that were in line.
    """
    values = result[f"figures {number}"]
    table = _contrast(values, training)
    apart = table[(table["p_maxt"] < LEAST_P / STRETCHES) & (table["g"].abs() > LEAST_G)]
    places = [feature[:2] for feature in apart["feature"]]
    forward, backward = ([m for m, k in places if KINDS[k] == kind] for kind in KINDS)
    if not places:
        return Finding("", "", "", 0.0, frozenset())
    at = (min(forward), 0) if forward else (max(backward), 1)
    here = apart[[place == at for place in places]]
    best = here.iloc[int(here["g"].abs().to_numpy().argmax())]
    figure = best["feature"][2]
    steps = out_of_line(values[:, at[0], at[1], figure])
    return Finding(KINDS[at[1]], _sites(training)[at[0]], FIGURES[figure], float(best["g"]), steps)


def out_of_line(figure: Array) -> frozenset[int]:
    """Steps of (step,) figures that are unlike those just before them: the Hampel identifier, one-sided in time."""
    size = np.log(np.abs(figure) + np.finfo(np.float64).tiny)
    recent, found = list(size[:RECENT]), []
    for i in range(RECENT, len(size)):
        middle = np.median(recent)
        spread = 1.4826 * np.median(np.abs(recent - middle))
        if abs(size[i] - middle) > OUTLYING * spread:
            found.append(i)
        else:
            recent = [*recent[1:], size[i]]
    return frozenset(found)


def _contrast(values: Array, training: Training) -> pd.DataFrame:
    """One row for each (stretch, module, kind, figure), in this order: logarithms, worker 1 against worker 2."""
    names = list(np.ndindex(*values.shape[1:]))
    frames = []
    for steps in np.array_split(np.arange(len(values)), STRETCHES):
        sizes = np.log(values[steps].reshape(len(steps), -1) + np.finfo(np.float64).tiny)
        workers = [training.workers[i] for i in steps]
        frames.append(statistics.contrasts(sizes, workers, names=names, between=[WORKERS]))
    return pd.concat(frames, ignore_index=True)


def _compared(out: dict[str, Array], work: Work) -> Result:
    modules = max(len(_sites(training)) for training in work.trainings)
    g = np.full((len(work.trainings), STRETCHES, modules, len(KINDS), len(FIGURES)), np.nan)
    for number, training in enumerate(work.trainings):
        values = out[f"figures {number}"]
        table = _contrast(values, training)
        g[number, :, : values.shape[1]] = table["g"].to_numpy().reshape(STRETCHES, *values.shape[1:])
    return {**out, "differences": g}


def _told(finding: Finding, training: Training) -> str:
    if not finding.module:
        return "the workers do not differ"
    whose = pd.Series([training.workers[i] for i in sorted(finding.steps)]).value_counts()
    who = f", {whose.iloc[0]} of {len(finding.steps)} by {whose.index[0]}" if len(whose) else ""
    since = f" in {len(finding.steps)} steps from {min(finding.steps)} on{who}" if finding.steps else ""
    return f"{finding.kind} of {finding.module} (g = {finding.g:+.1f}), out of line{since}"


# ---- training, and recording it


def _train(net: Net, training: Training, step: StepOf, count: Callable[[int], None]) -> None:
    optimizer = _optimizer(net)
    for i, (batch, worker) in enumerate(zip(training.batches, training.workers, strict=True)):
        net.ill = training.faulty and i in training.sick
        with step(worker) as loss:
            _forth_and_back(net, optimizer, *batch, loss)
        count(i)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _optimizer(net: Net) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)


def _forth_and_back(net: Net, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, report: Loss) -> None:
    optimizer.zero_grad()
    device = _device(net)
    loss = F.cross_entropy(net(x.to(device)), y.to(device))
    report(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


Reading = AbstractContextManager[tuple[StepOf, Callable[[], pd.DataFrame]]]


def _reader(lens: Inspector) -> Callable[[Net], Reading]:
    """Net -> a recorder of its steps, and what gives a table: kind, site, figure, step, value."""
    if lens.capabilities["record"]:
        return lambda net: _by_library(type(lens), net)
    if lens.name == "hooks":
        return _by_recorder
    raise UnsupportedError(
        f"backend {lens.name!r} has no recorder of training steps; comgra has, and crosslens.tasks.Recorder, which "
        "needs no library, is what this task runs under 'hooks'"
    )


@contextmanager
def _by_recorder(net: Net) -> Iterator[tuple[StepOf, Callable[[], pd.DataFrame]]]:
    with Recorder(net, [f"module:{name}:output" for name in net.sites], kpis=FIGURES, parameters=False) as recorder:

        @contextmanager
        def step(category: str) -> Iterator[Loss]:
            with recorder.step(category) as running:
                yield lambda loss: running.loss("loss", loss)

        yield step, lambda: recorder.table().rename(columns={"kpi": "figure"})


@contextmanager
def _by_library(kind: type[Inspector], net: Net) -> Iterator[tuple[StepOf, Callable[[], pd.DataFrame]]]:
    with kind(net) as lens, lens.record([f"module:{name}:output" for name in net.sites], parameters=False) as recording:

        @contextmanager
        def step(category: str) -> Iterator[Loss]:
            with recording.step(category) as running:
                yield running.loss

        def table() -> pd.DataFrame:
            found = recording.table()
            return found.assign(figure=found["kpi"] + "/" + found["aggregate"])

        yield step, table


def _fill(out: dict[str, Array], number: int, training: Training, table: pd.DataFrame) -> None:
    """The tidy table of a recording as arrays; NaN where it has no figure."""
    steps = len(training.batches)
    losses = table[table["kind"] == "loss"].set_index("step")["value"]
    out[f"loss {number}"] = losses.reindex(range(steps)).to_numpy(np.float64)
    rows = table[table["kind"].isin(KINDS)]
    figures = rows.pivot_table(index="step", columns=["site", "kind", "figure"], values="value")
    sites = [f"module:{name}:output" for name in _sites(training)]
    wanted = pd.MultiIndex.from_product([sites, KINDS, FIGURES])
    array = figures.reindex(index=range(steps), columns=wanted).to_numpy(np.float64)
    out[f"figures {number}"] = array.reshape(steps, len(sites), len(KINDS), len(FIGURES))


def _sites(training: Training) -> tuple[str, ...]:
    found: Any = training.make
    names: tuple[str, ...] = found.sites
    return names


def _keeping(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        seen[name] = output

    return hook


def _figures(tensor: Tensor) -> list[float]:
    """In the order of `FIGURES`, straight from their definitions."""
    x = tensor.detach().numpy().reshape(len(tensor), -1)
    size = np.abs(x)
    return [size.mean(1).mean(), x.std(1, ddof=1).mean(), size.max(1).max()]


def _counted(progress: Progress | None, number: int, work: Work) -> Callable[[int], None]:
    steps = len(work.trainings[0].batches)

    def count(i: int) -> None:
        if progress:
            progress(number * steps + i + 1, len(work.trainings) * steps)

    return count
