"""What recording a training step costs: the bare step, the `Recorder`, and comgra's own recorder, on the same tensors.

Both record the outputs of all layers, their gradients, all parameters and theirs, with comgra's key figures, without
singular values, in every step. comgra is called as its documentation teaches, in `kpis` mode without single samples.
That both give the same figures, and that neither changes the training, is asserted before anything is timed.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crosslens.tasks import Recorder, Recording
from crosslens.tasks.recording_figures import BATCH

from .loops import LOOPS, Loop, bare
from .turns import Way, WaysDifferError, in_turns

Figures = dict[tuple[Any, ...], float]
"""(step, kind, site, key figure) -> value."""
Steps = Callable[[int], None]
"""Makes so many training steps."""
FIGURES = ("mean", "abs_mean", "sd", "abs_max", *BATCH)
"""Those that comgra has."""
_WARM_UP = 3


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds and bytes of a step, for each training and way.

    Args:
        job: steps (of the Recorder in a round, which are one part of a recording, so that a round pays for writing it),
            comgra_steps (of comgra in a round; none: it is left out), rounds, repeat.

    Returns:
        loops: for each its name, samples, and bytes: way -> bytes a step on disk.

    Raises:
        WaysDifferError: the two do not record the same figures, or change the training.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="comgra")
    found = []
    for name, make in LOOPS.items():
        check(make, comgra=bool(job["comgra_steps"]))
        torch.manual_seed(job["repeat"])
        found.append({"name": name, **_measure(make, job)})
    return {"loops": found}


def _measure(make: Callable[[], Loop], job: dict[str, Any]) -> dict[str, Any]:
    every, fewer = job["steps"], job["comgra_steps"]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root, loop = Path(folder), make()

        def recorded(name: str, **options: Any) -> Steps:
            return stack.enter_context(ours(make(), root / name, flush_every=every, **options))

        ways: dict[str, tuple[Steps, int]] = {
            "bare": (lambda steps: bare(loop, steps), every),
            "Recorder, not due": (recorded("never", schedule=lambda step, category: False), every),
            "Recorder, comgra's figures": (recorded("same", kpis=FIGURES), every),
            "Recorder, default": (recorded("default"), every),
        }
        folders = {"Recorder, comgra's figures": "same", "Recorder, default": "default"}
        if fewer:
            (root / "comgra").mkdir()
            ways["comgra, kpis"] = (stack.enter_context(theirs(make(), root / "comgra")), fewer)
            folders["comgra, kpis"] = "comgra"
        for run, _ in ways.values():
            run(_WARM_UP)
        samples = in_turns({way: _timed(*each) for way, each in ways.items()}, job["rounds"], job["repeat"])
        stack.close()  # all is written
        steps = {way: _WARM_UP + job["rounds"] * count for way, (_, count) in ways.items()}
        sizes = {way: round(_bytes(root / name) / steps[way], 1) for way, name in folders.items()}
    return {"samples": samples, "bytes": sizes}


def _timed(run: Steps, steps: int) -> Way:
    def way() -> int:
        run(steps)
        return steps

    return way


@contextmanager
def ours(loop: Loop, out: Path, **options: Any) -> Iterator[Steps]:
    """Steps inside a `Recorder`."""
    sites = [f"module:{name}:output" for name in loop.layers]
    with Recorder(loop.model, sites, out=out, **options) as recorder:

        def run(steps: int) -> None:
            for _ in range(steps):
                with recorder.step("train") as step:
                    loss = loop.loss()
                    step.loss("loss", loss)
                    loss.backward()  # type: ignore[no-untyped-call]
                    step.gradients("loss")
                    loop.optimizer.step()

        yield run


@contextmanager
def theirs(loop: Loop, out: Path) -> Iterator[Steps]:
    """Steps inside comgra's recorder."""
    from comgra.objects import DecisionMakerForRecordingsFrequencyPerType
    from comgra.recorder import ComgraRecorder

    recorder = ComgraRecorder(
        out, "group", "trial", DecisionMakerForRecordingsFrequencyPerType(1),
        calculate_svd_and_other_expensive_operations_of_parameters=False,
    )  # fmt: skip
    recorder.track_module("net", loop.model)
    handles = [
        loop.model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: recorder.register_tensor(name, out, recording_type="kpis")
        )
        for name in loop.layers
    ]
    number = 0

    def run(steps: int) -> None:
        nonlocal number
        for _ in range(steps):
            recorder.start_batch(number, len(loop.inputs), "train", record_all_tensors_per_batch_index_by_default=False)
            recorder.start_iteration()
            loss = loop.loss()
            recorder.register_tensor("loss", loss, is_loss=True)
            loss.backward()  # type: ignore[no-untyped-call]
            recorder.record_current_gradients("loss")
            loop.optimizer.step()
            recorder.finish_iteration()
            recorder.finish_batch()
            number += 1

    yield run
    recorder.finalize()
    for handle in handles:
        handle.remove()


def check(make: Callable[[], Loop], *, comgra: bool = True) -> None:
    """Hold both to the same figures of the same tensors, and to the training without them.

    Raises:
        WaysDifferError: they differ.
    """
    recorded: dict[str, Figures] = {}
    trained = {}
    for way in ("bare", "Recorder", *(["comgra"] if comgra else [])):
        torch.manual_seed(0)
        loop = make()
        with tempfile.TemporaryDirectory() as folder:
            if way == "bare":
                bare(loop, 2)
            elif way == "Recorder":
                with ours(loop, Path(folder, "new"), kpis=FIGURES) as run:
                    run(2)
                recorded[way] = _of_ours(Path(folder, "new"))
            else:
                with theirs(loop, Path(folder)) as run:
                    run(2)
                recorded[way] = _of_comgra(Path(folder), loop.model)
        trained[way] = torch.cat([p.detach().flatten() for p in loop.model.parameters()])
        if not torch.equal(trained[way], trained["bare"]):
            raise WaysDifferError(f"{way} changed the training")
    if comgra:
        alike(recorded["Recorder"], recorded["comgra"])


def alike(mine: Figures, other: Figures) -> None:
    """Hold one recording to another.

    Raises:
        WaysDifferError: they are not of the same tensors, or a figure differs by more than rounding.
    """
    if not mine or mine.keys() != other.keys():
        raise WaysDifferError(f"not the same tensors were recorded: {sorted(mine.keys() ^ other.keys())[:4]}")
    far = [key for key in mine if not np.isclose(mine[key], other[key], rtol=2e-4, atol=1e-6)]
    if far:
        raise WaysDifferError(f"{len(far)} figures differ; {far[0]}: {mine[far[0]]:g} and {other[far[0]]:g}")


def _of_ours(folder: Path) -> Figures:
    table = Recording.load(folder).table(["activation", "gradient", "parameter"])
    # comgra's figures over a batch, and of a parameter as a whole
    table = table[table["site"].str.startswith("parameter:") ^ table["kpi"].isin(BATCH)]
    keys = zip(table["step"], table["kind"], table["site"], table["kpi"], strict=True)
    return dict(zip(keys, table["value"].astype(float), strict=True))


def _of_comgra(folder: Path, model: nn.Module) -> Figures:
    """Every number in comgra's files; it has no reader of its own."""
    import msgpack
    from comgra.utilities import PseudoDb

    found: Figures = {}
    sizes = {f"parameter:{name}": parameter.numel() for name, parameter in model.named_parameters()}
    for path in folder.rglob("*.msgpack"):
        if path.parent.parent.name != "recordings":  # the curves
            continue
        content = msgpack.loads(path.read_bytes(), strict_map_key=False)
        for key, held in PseudoDb([]).deserialize(content["recordings"]).record_set.items():
            step, kind, aggregate, _, node, _, record, kpi, _ = key
            site = node.removeprefix("node__")
            if record != "data" or site == "loss" or "val" not in held:  # where it refers to another
                continue
            whole = aggregate == "has_no_batch_dimension"
            kind = "gradient" if kind != "forward" else "parameter" if whole else "activation"
            name = site.replace("net.", "parameter:", 1) if whole else f"module:{site}:output"
            if whole and kpi == "std":  # its divisor is n - 1
                found[step, kind, name, "sd"] = held["val"] * (1 - 1 / sizes[name]) ** 0.5
            else:
                found[step, kind, name, kpi if whole else f"{kpi}/{aggregate}"] = held["val"]
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
