"""Being part of a Ray cluster: one that there is, or a new one on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from crosslens.adapters import BackendNotInstalledError, InputError

_ANSWERS = 5.0  # seconds in which the host of a cluster must answer
_JOINS = 30.0  # seconds in which the cluster must


def ray_module() -> Any:
    """Ray, imported.

    Raises:
        BackendNotInstalledError: it is not installed; names the command.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BackendNotInstalledError(f"Ray cannot be imported ({error}): pip install 'crosslens[ray]'") from error
    return ray


@contextlib.contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Be part of a Ray cluster; gives the module `ray`.

    Args:
        address: HOST:PORT of a cluster that this machine belongs to, `auto` for the one that runs here, `local` for a
            new one on this machine alone; None for RAY_ADDRESS, else the one that runs here, else a new one. A process
            that has called `ray.init` stays where it is.

    Raises:
        BackendNotInstalledError: Ray is missing.
        InputError: there is no such cluster, or it has another version of Ray or Python.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    given = address or os.environ.get("RAY_ADDRESS") or None
    if given not in (None, "auto", "local"):
        _check_address(given)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here: it tells nobody
    try:
        ray.init(address=given, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (Exception, SystemExit) as error:  # Ray also exits
        where = "this machine has no Ray cluster, or it does not answer" if given is None else f"Ray cluster {given!r}"
        raise InputError(f"{where}: {_first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise quickly where `ray.init` would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"Ray address {address!r}: write HOST:PORT of the cluster's head, such as 10.0.0.1:6379, and run this on a "
            "machine of the cluster (`ray start --address HOST:PORT` makes it one)"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}; `ray start --head` starts one") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_JOINS, check=False)
        failed = last_line(done.stderr or done.stdout) if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = f"no answer in {_JOINS:.0f} s"
    if failed:
        raise InputError(f"what answers at {address} is no Ray cluster that can be joined: {failed}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(text: str) -> str:
    """The last line that says something; what Ray prints begins with its own call stack."""
    return next((line.strip() for line in reversed(text.strip().splitlines()) if line.strip()), "no reason is given")
