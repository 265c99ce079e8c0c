"""Measure how costs grow: `python -m crosslens.benchmarks.scaling --out results/scaling.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from crosslens.adapters import BackendNotInstalledError, backends, load_backend
from crosslens.benchmarks.drawn import write_svg
from crosslens.benchmarks.environment import threads
from crosslens.benchmarks.fresh import compact, shuffled
from crosslens.benchmarks.program import check_page, keep, run_program

from .axes import AXES
from .figure import figure
from .table import markdown

SECONDS = 900.0
"""That one process may take."""
_NEEDED = ("capture.residual", "edit.add", "edit.positions", "family.llama")
_QUICK = ("sites", "edits", "depth")


def able(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Backends that record and edit; and why the others do not.

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
        lacking = [states[need].reason for need in _NEEDED if not states[need]]
        if lacking:
            others[name] = lacking[0]
        else:
            found.append(name)
    return found, others


def main(
    out: Annotated[Path | None, typer.Option(help="a .md file; what was measured goes beside it as .json")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    processes: Annotated[int, typer.Option(min=1, help="of each backend")] = 3,
    samples: Annotated[int, typer.Option(min=2, help="of each point, in each process")] = 4,
    calls: Annotated[int, typer.Option(min=0, help="over which memory is read, in the first process")] = 200,
    seconds: Annotated[float, typer.Option(min=0, help="in one process, after which no more points begin")] = 60.0,
    quick: Annotated[bool, typer.Option(help="one process, two samples, 40 calls, three points of three axes")] = False,
) -> None:
    """How costs grow with sites, edits, depth, width, tokens and batch, and memory with every call."""
    check_page(out)
    names, others = able(backend or backends())
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    settings: dict[str, Any] = {
        "processes": 1 if quick else processes, "samples": 2 if quick else samples, "calls": 40 if quick else calls,
        "seconds": seconds, "threads": threads(), "left_out": others, "devices": devices,
        "axes": {name: list(axis.points(quick)) for name, axis in AXES.items() if not quick or name in _QUICK},
        "gpu": torch.cuda.get_device_name() if len(devices) > 1 else None,
    }  # fmt: skip
    jobs: list[dict[str, Any]] = []
    for repeat in range(settings["processes"]):
        for name in names:
            for device in devices:
                job = {key: settings[key] for key in ("axes", "samples", "seconds", "threads")}
                read = settings["calls"] if repeat == 0 else 0
                jobs.append({"backend": name, "repeat": repeat, "device": device, "calls": read, **job})
    kept = shuffled("crosslens.benchmarks.scaling.worker", jobs, names, settings, out, SECONDS)
    if out is not None:
        write_svg(figure(kept), out.with_name("scaling.svg"))
    keep(out, compact(kept), markdown(kept))


if __name__ == "__main__":
    run_program(main)
