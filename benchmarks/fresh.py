"""Jobs that each run in a process of their own; what each found is on disk before the next one starts.

A job is JSON. Its program, `python -m MODULE JOB.json`, writes what it found as JSON at the path that `found` gives.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from crosslens.adapters import load_backend
from crosslens.tasks.parts import replace_file

from .environment import environment
from .program import begun, keep_measured

SAME = ("python", "platform", "cpu", "cores", "versions")
"""Of an environment: what must be the same for processes to stand in one table."""

Kept = dict[str, Any]
"""What is kept of a study: `environment`, `settings`, and `processes`, each with its `job` and what it `found`."""


def found(job: Path) -> Path:
    """Where the program of a job writes what it found."""
    return job.with_suffix(".found")


def run_job(module: str, job: Mapping[str, Any], *, threads: int, seconds: float) -> dict[str, Any]:
    """What a fresh process found; `error` where it ended without an answer, or took longer than `seconds`."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.json")
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-P", "-W", "ignore", "-m", module, str(path)]
        try:
            done = subprocess.run(
                command, env={**os.environ, **quiet, **limits}, capture_output=True, text=True, errors="replace",
                timeout=seconds, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {seconds:.0f} s"}
        if not found(path).exists():
            last = done.stderr.strip().rpartition("\n")[2]
            return {"error": f"the process ended with {done.returncode}: {last}"}
        answer: dict[str, Any] = json.loads(found(path).read_text(encoding="utf-8"))
        return answer


def collect(
    module: str, jobs: Sequence[Mapping[str, Any]], about: Kept, page: Path | None, *, threads: int, seconds: float
) -> Kept:
    """Run jobs one after the other, and keep what they found beside the page, as .json, after each.

    Args:
        module: the program.
        jobs: in the order in which they run.
        about: `environment` and `settings`.
        page: a .md file. Where the run was cut, with the same settings (`begun`), jobs with an answer are not run
            again.
        threads: that each process computes with.
        seconds: that one process may take.
    """
    earlier = begun(page, about["environment"])
    answered = [each for each in earlier.get("processes", []) if "error" not in each["found"]]
    kept: Kept = {**about, "processes": answered if earlier.get("settings") == about["settings"] else []}
    have = [each["job"] for each in kept["processes"]]
    for job in track(
        [job for job in jobs if dict(job) not in have], description="processes", console=Console(stderr=True)
    ):
        answer = run_job(module, job, threads=threads, seconds=seconds)
        kept["processes"].append({"job": dict(job), "found": answer})
        keep_measured(page, compact(kept))
    return kept


def shuffled(
    module: str,
    jobs: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    settings: Kept,
    page: Path | None,
    seconds: float,
) -> Kept:
    """`collect`, in an order drawn from the seed 0, of jobs that each name a `backend` and a `repeat`.

    Args:
        names: of the backends, in the order in which they are kept.
        settings: of the study; `threads` among them.
    """
    order = random.Random(0).sample(list(jobs), len(jobs))
    libraries = [library for name in names if (library := load_backend(name).library)]
    about = {"environment": environment(libraries), "settings": settings}
    kept = collect(module, order, about, page, threads=settings["threads"], seconds=seconds)
    kept["processes"].sort(key=lambda each: (names.index(each["job"]["backend"]), each["job"]["repeat"]))
    return kept


def answer(measure: Callable[[dict[str, Any]], Any]) -> None:
    """What the program of a job does: measure what the file named on the command line asks for, and write it."""
    path = Path(sys.argv[1])
    replace_file(found(path), json.dumps(measure(json.loads(path.read_text(encoding="utf-8")))).encode())


def compact(kept: Kept) -> str:
    """JSON with a line for each process."""
    head = json.dumps({name: value for name, value in kept.items() if name != "processes"})
    lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in kept["processes"])
    return f'{head[:-1]}, "processes": [\n{lines}\n]}}\n'
