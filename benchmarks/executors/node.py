"""What runs on a node of a Ray cluster: an actor that starts a cell's process there and sends back what it left."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError

from ..environment import environment
from ..launch import run_worker
from ..plan import fetch_models


class Runner:
    """Runs cells one after the other, each in a fresh process, as the local executor does.

    Args:
        variables: of the driver's environment that its cells need here too.
        libraries: distributions whose versions are asked for.
        models: that must be here before a cell runs.
    """

    def __init__(self, variables: Mapping[str, str], libraries: Sequence[str], models: Sequence[str]) -> None:
        os.environ.update(variables)
        self._libraries, self._models = libraries, models
        self._stop = threading.Event()
        self._at = ("starting", 0, 0)
        self._node: dict[str, Any] = {}

    def ready(self) -> dict[str, Any]:
        """Fetch the models; what this node is.

        Raises:
            ModelError, InputError: a model is not here and cannot be had.
        """
        import ray

        fetch_models(self._models)
        found = environment(self._libraries)
        self._node = {"id": ray.get_runtime_context().get_node_id()} | {k: found[k] for k in ("cpu", "cores", "gpus")}
        return found

    def run(self, job: Mapping[str, Any], reference: bytes | None, timeout: float) -> dict[str, Any]:
        """Run a cell.

        Args:
            job: see `worker.py`; its reference is put beside it.
            reference: the file with the result that it is compared with.
            timeout: seconds.

        Returns:
            `cell` and `samples` as `launch.Outcome` has them; `started`; `node`, where it ran; and `files`: name ->
            content.

        Raises:
            InputError: this node cannot run it; says nothing about the cell.
        """
        self._at = ("starting", 0, 0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            with tempfile.TemporaryDirectory(prefix="crosslens-", ignore_cleanup_errors=True) as folder:
                left = self._run(dict(job), reference, timeout, Path(folder))
        except OSError as error:
            if isinstance(error, InterruptedError):
                raise
            raise InputError(f"a node of the cluster cannot run cells: {error}") from error
        return {"started": started, "node": self._node, **left}

    def _run(self, job: dict[str, Any], reference: bytes | None, timeout: float, folder: Path) -> dict[str, Any]:
        scratch = folder / "cell"
        scratch.mkdir()
        if reference is not None:
            held = folder / "reference.npz"
            held.write_bytes(reference)
            job["reference"] = str(held)
        found = run_worker(job, scratch, timeout=timeout, follow=self._follow, stop=self._stop)
        files = {path.name: path.read_bytes() for path in sorted(scratch.glob("result.*"))}
        shutil.rmtree(scratch, ignore_errors=True)
        return {"cell": found.cell, "samples": found.samples, "files": files}

    def _follow(self, stage: str, done: int, total: int) -> None:
        self._at = (stage, done, total)

    def at(self) -> tuple[str, int, int]:
        """How far the cell that runs is: stage, steps done, steps in all."""
        return self._at

    def stop(self) -> None:
        """Give up the cell that runs; returns when its processes have ended, or soon will have."""
        self._stop.set()
