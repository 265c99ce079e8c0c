"""Where the cells of a run are run: on this machine (`local.py`) or on a Ray cluster (`on_ray.py`).

Both are given the same cells and keep the same of each; the run's folder is where the driver is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from crosslens.adapters import InputError

from ..plan import CPU, Cell, Plan, known
from ..progress import Show
from ..store import RunFolder
from ..timing import Sampling

EXECUTORS = ("local", "ray")
NO_TIMING = Sampling(pairs=0, most=0, seconds=0.0)
"""Of a plan whose results are judged, and nothing is timed."""
Work = Sequence[tuple[Cell, str | None]]
"""Cells, each with the id of its reference, which is finished; None for a reference."""


class Executor(Protocol):
    """What runs cells."""

    def run(self, cells: Work) -> dict[str, str]:
        """Run each in a process of its own and keep it in the run's folder as it ends; cell -> status.

        Raises:
            KeyboardInterrupt: what ran is given up, and what had finished is kept.
            InputError: nothing more can be run or written; says why.
        """


def joined(name: str, address: str | None, plan: Plan) -> AbstractContextManager[Any]:
    """Be where cells can run, before anything is written.

    Raises:
        InputError: there is no such executor, device or cluster, or no node that is large enough.
        BackendNotInstalledError: Ray is missing.
    """
    if known("executor", name, EXECUTORS) == "local":
        if address is not None:
            raise InputError("--ray-address is of --executor ray; leave it out, or name that")
        _refuse_absent(plan.device)
        return nullcontext()
    from . import on_ray

    return on_ray.joined(address, plan)


def _refuse_absent(device: str) -> None:
    """Raise unless PyTorch can compute on this device of this machine.

    Raises:
        InputError: it cannot; says what is missing.
    """
    if device == CPU:
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = (
            "PyTorch finds no GPU that it can use; `nvidia-smi` shows those of this machine, and CUDA_VISIBLE_DEVICES "
            "can hide them"
            if built
            else f"PyTorch {torch.__version__} is built for the CPU alone; install a build with CUDA"
        )
        raise InputError(f"--device {device}: {why}, or leave --device out. Nothing was run")
    count, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
    if number >= count:
        raise InputError(f"--device {device}: PyTorch finds {count} here, from cuda:0 on. Nothing was run")


@contextmanager
def executor(
    name: str, plan: Plan, folder: RunFolder, show: Show, environment: Mapping[str, Any]
) -> Iterator[Executor]:
    """The executor of this name, where `joined` is; what it holds is given back in the end.

    Args:
        environment: of this process, which every node must share as far as results depend on it.
    """
    if name == "local":
        from .local import Queue

        yield Queue(plan, folder, show)
        return
    from .on_ray import RayExecutor

    with RayExecutor(plan, folder, show, environment) as found:
        yield found


def timed(plan: Plan) -> bool:
    """Whether cells take timing samples, and must not share their machine or cores."""
    return plan.sampling.most > 0


def job_of(cell: Cell, plan: Plan, *, cores: Sequence[int] = (), reference: Path | None = None) -> dict[str, Any]:
    """What a worker is told; see `worker.py`."""
    return asdict(cell) | {
        "size": plan.size,
        "dtype": plan.dtype,
        "attn_implementation": plan.attn_implementation,
        "device": plan.device,
        "threads": plan.threads,
        "cores": list(cores),
        "seed": plan.seed,
        "sampling": asdict(plan.sampling),
        "reference": reference and str(reference),
    }
