"""What it takes to repeat a run: versions, the machine, threads, the state of the source."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_ALWAYS = ("crosslens", "torch", "transformers", "numpy", "scipy", "pandas")


def environment(libraries: Iterable[str]) -> dict[str, Any]:
    """Facts about this machine and its software, as JSON.

    Args:
        libraries: distributions to name beside the core ones.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count()},
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "versions": {name: library_version(name) for name in dict.fromkeys((*_ALWAYS, *libraries))},
        "git": git_state(),
    }


def library_version(distribution: str) -> str | None:
    """Version of an installed distribution, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def threads() -> int:
    """Threads that every cell computes with: OMP_NUM_THREADS where it is set, else the physical cores at hand."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: fewer where a container or taskset allows fewer
    return min(cores, len(affinity(0))) if affinity is not None else cores


def cpu_name() -> str:
    """The processor's own name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Commit of the source that runs, and whether it was changed since; None where it is no git checkout."""
    here = Path(__file__).resolve()
    in_git = ("git", "-C", str(here.parent))
    if not _output(*in_git, "ls-files", here.name):  # installed somewhere inside another project's checkout
        return None
    commit = _output(*in_git, "rev-parse", "HEAD")
    changed = _output(*in_git, "status", "--porcelain", "--untracked-files=no", ":/")
    return {"commit": commit, "changed": bool(changed)} if commit else None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
