"""Measure what operations cost: `python -m crosslens.benchmarks.overhead --out results/overhead.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from crosslens.adapters import BackendNotInstalledError, backends, load_backend
from crosslens.adapters.architectures import describe
from crosslens.benchmarks.drawn import write_svg
from crosslens.benchmarks.environment import threads
from crosslens.benchmarks.fresh import compact, shuffled
from crosslens.benchmarks.program import check_page, keep, run_program
from crosslens.tasks import load_model

from .figure import figure
from .operations import OPERATIONS, check_family
from .table import markdown

SMALL = ("small", 1, 16, tuple(OPERATIONS), 4)
LARGE = ("large", 4, 32, ("capture_residuals", "capture_everything"), 2)
"""Name, batch, tokens, operations, samples of each."""
SECONDS = 900.0
"""That one process may take."""


def shapes(quick: bool) -> list[dict[str, Any]]:
    """What each process measures."""
    names = ("name", "batch", "tokens", "operations", "samples")
    some = [SMALL, LARGE] if not quick else [(*SMALL[:4], 2)]
    return [{**dict(zip(names, shape, strict=True)), "operations": list(shape[3])} for shape in some]


def able(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Backends that do one of the operations; and why the others do not.

    Raises:
        InputError: there is no such backend.
    """
    found, others = [], {}
    for name in names:
        try:
            states = load_backend(name).supports()
        except BackendNotInstalledError as error:
            others[name] = str(error)
            continue
        if any(all(states[need] for need in each.needs) for each in OPERATIONS.values()):
            found.append(name)
        else:
            others[name] = "it has none of these operations"
    return found, others


def main(
    out: Annotated[Path | None, typer.Option(help="a .md file; what was measured goes beside it as .json")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    model: Annotated[str, typer.Option(help="of the family llama, see `crosslens models`")] = "smollm2-135m",
    processes: Annotated[int, typer.Option(min=1, help="of each backend")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="of blocks in one process, after which no more begin")] = 25.0,
    quick: Annotated[bool, typer.Option(help="one process, two blocks, the small shape")] = False,
) -> None:
    """What each operation costs through each backend, and what of it the common interface costs."""
    check_page(out)
    names, others = able(backend or backends())
    network, _ = load_model(model)
    check_family(describe(network))
    del network
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    settings: dict[str, Any] = {
        "model": model, "processes": 1 if quick else processes, "seconds": seconds, "threads": threads(),
        "shapes": shapes(quick), "devices": devices, "left_out": others,
        "gpu": torch.cuda.get_device_name() if len(devices) > 1 else None,
    }  # fmt: skip
    jobs = [
        {"backend": name, "repeat": repeat, "device": device, **{k: settings[k] for k in (
            "model", "threads", "seconds", "shapes")}}
        for repeat in range(settings["processes"]) for name in names for device in devices
    ]  # fmt: skip
    kept = shuffled("crosslens.benchmarks.overhead.worker", jobs, names, settings, out, SECONDS)
    if out is not None:
        write_svg(figure(kept), out.with_name("overhead.svg"))
    keep(out, compact(kept), markdown(kept))


if __name__ == "__main__":
    run_program(main)
