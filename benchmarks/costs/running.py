"""Runs the parts and keeps them: what was measured in the same way is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track

from crosslens.adapters import InputError
from crosslens.benchmarks.fresh import SAME, Kept, compact, run_job
from crosslens.benchmarks.program import keep_measured

from .page import markdown
from .parts import PARTS, Job

SECONDS = 900.0
"""That one process may take."""
_WORKER = f"{__package__}.worker"


def collect(jobs: Sequence[Job], about: Mapping[str, Any], page: Path | None) -> Kept:
    """Run the jobs that are not kept yet, and keep what each found beside the page, as .json, before the next starts.

    Args:
        jobs: in the order in which they run. What is kept of a part with other settings makes way when the first job of
            that part has ended; parts without a job here stay.
        about: `environment` and `settings`, which are kept where a process has to run.
        page: a .md file, or None.

    Returns:
        environment, settings, and processes: each its job, the load of the machine when it began, and what it found.

    Raises:
        InputError: what lies there is of another machine or other software, or not of this study.
    """
    before = earlier(about, page)
    kept: Kept = {**about, "processes": before.get("processes", [])}
    have = [each["job"] for each in kept["processes"] if "error" not in each["found"]]
    alike = [_settings(job) for job in jobs]
    wanted = [job for job in jobs if job not in have]
    if not wanted:
        return before
    for job in track(wanted, description="processes", console=Console(stderr=True)):
        load = psutil.getloadavg()[0]
        answer = run_job(_WORKER, job, threads=1, seconds=SECONDS)
        kept["processes"] = [
            each
            for each in kept["processes"]
            if each["job"] != job and (each["job"]["part"] != job["part"] or _settings(each["job"]) in alike)
        ]
        kept["processes"].append({"job": job, "load": round(load, 2), "found": answer})
        kept["processes"].sort(key=lambda each: (list(PARTS).index(each["job"]["part"]), each["job"]["repeat"]))
        keep_measured(page, compact(kept))
    return kept


def earlier(about: Mapping[str, Any], page: Path | None) -> Kept:
    """What was kept; nothing where there is none.

    Raises:
        InputError: as `collect`.
    """
    path = page.with_suffix(".json") if page is not None else None
    if path is None or not path.exists():
        return {}
    try:
        kept: Kept = json.loads(path.read_text(encoding="utf-8"))
        markdown(kept)
        there = kept["environment"]
        other = [name for name in SAME if there[name] != about["environment"][name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds nothing that this program has kept: {error!r}; remove it or name another"
        ) from None
    if other:
        raise InputError(f"{path} was measured with another {', '.join(other)}; remove it or name another --out")
    return kept


def _settings(job: Job) -> Job:
    """All but which of its like it is."""
    return {name: value for name, value in job.items() if name != "repeat"}
