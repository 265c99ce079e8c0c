"""What it takes to repeat a run: versions, the machine, its load, threads, the state of the source."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

_ALWAYS = (
    "crosslens",
    *("torch", "transformers", "tokenizers", "safetensors"),
    *("numpy", "scipy", "pandas", "pyarrow", "numba", "datasketches"),
)
_VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|NUMEXPR|TORCH|PYTORCH|ATEN|CUDA|CUBLAS|NVIDIA|HIP|ROCR|XLA|JAX|NUMBA)_.*"
    r"|HF_HUB_OFFLINE|TRANSFORMERS_.*|TOKENIZERS_PARALLELISM|PYTHONHASHSEED|LD_PRELOAD|MALLOC_.*"
)
_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # version 2, 1


def environment(libraries: Iterable[str]) -> dict[str, Any]:
    """Facts about this machine and its software, as JSON; `Environment` in `schema.py` has their types.

    Args:
        libraries: distributions to name beside the core ones in `versions`; `packages` has everything installed.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": {"physical": psutil.cpu_count(logical=False), "logical": psutil.cpu_count(), "at_hand": _at_hand()},
        "memory_bytes": memory_bytes(),
        "governor": governor(),
        "load_average": list(psutil.getloadavg()),
        "gpus": gpus(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if _VARIABLES.fullmatch(k) and "/" not in v},
        "versions": {name: library_version(name) for name in dict.fromkeys((*_ALWAYS, *libraries))},
        "packages": packages(),
        "git": git_state(),
        "source": source_digest(),
    }


def packages() -> dict[str, str]:
    """Every installed distribution and its version, as `pip freeze` has them."""
    found = {(dist.metadata["Name"] or "").lower(): dist.version for dist in distributions()}
    return {name: found[name] for name in sorted(filter(None, found))}


def memory_bytes() -> int:
    """Memory that processes here can have: the machine's, or less where a container has less."""
    limits = [int(text) for path in _CGROUPS if path.exists() and (text := path.read_text().strip()).isdigit()]
    return min([int(psutil.virtual_memory().total), *limits])


def governor() -> str | None:
    """How the system sets the clock speed, as "performance", and "(no turbo)" where that is off; None: it hides it."""
    names = sorted({_read(path) for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""})
    off = _read(_CPUS / "intel_pstate/no_turbo") == "1" or _read(_CPUS / "cpufreq/boost") == "0"
    return ", ".join(names) + (" (no turbo)" if off else "") if names else None


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU; asked of its driver, so that this process need not open it."""
    rows = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    keys = ("name", "memory", "driver")
    return [dict(zip(keys, map(str.strip, row.split(",")), strict=False)) for row in rows.splitlines()]


@cache
def source_digest() -> str:
    """SHA-256 of the code and data that run, whether they come from a checkout, changed or not, or from a wheel."""
    digest = hashlib.sha256()
    for folder in ("adapters", "benchmarks", "tasks"):
        spec = find_spec(f"crosslens.{folder}")  # imports nothing of it
        assert spec is not None
        assert spec.submodule_search_locations is not None
        here = Path(spec.submodule_search_locations[0])
        for path in sorted(p for p in here.rglob("*") if p.suffix in (".py", ".json", ".jsonl") and p.is_file()):
            digest.update(f"{folder}/{path.relative_to(here).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


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
    return min(psutil.cpu_count(logical=False) or os.cpu_count() or 1, _at_hand())


def _at_hand() -> int:
    """Logical cores that this process may use: on Linux fewer where a container or taskset allows fewer."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


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
    changed = _output(*in_git, "status", "--porcelain", "--untracked-files=no", ":/") or _output(
        *in_git, "ls-files", "--others", "--exclude-standard", ":/*.py"
    )
    return {"commit": commit, "changed": bool(changed)} if commit else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
