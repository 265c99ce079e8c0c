"""Cells on the nodes of a Ray cluster; the store is on the driver, and files come and go through Ray alone.

A cell that is timed has a node to itself: the actor that runs it holds all CPUs of the node, so that Ray puts nothing
else there, whoever asks, and it waits for a node until others have left it. Cells that are not timed share nodes, each
with the CPUs, and the memory where it is known, that it needs.

The cells of a node that is lost run again on another, `MOST_TRIES` times at most. Nothing outlives the driver, which
can be started again with `--resume`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crosslens.adapters import InputError
from crosslens.tasks import known_models
from crosslens.tasks.ray_cluster import cluster, ray_module
from crosslens.tasks.ray_pool import Lost, Pool

from ..plan import CPU, Cell, Plan
from ..progress import Show
from ..store import RunFolder, read_run
from . import Work, job_of, timed

_FROM_DRIVER = ("PYTHONPATH", "HF_HUB_OFFLINE", "HF_ENDPOINT")
_SAME = ("python", "versions", "source")


@contextmanager
def joined(address: str | None, plan: Plan) -> Iterator[None]:
    """Be part of a cluster that has a node large enough for a cell.

    Raises:
        InputError, BackendNotInstalledError: as `cluster`, or no node has as many CPUs as a cell has threads, or the
            GPU that it needs.
    """
    if ":" in plan.device:
        raise InputError(f"--device {plan.device}: on Ray it is cuda, since Ray says which GPU of a node a cell gets")
    with cluster(address):
        large = max((node["CPU"] for node in _nodes().values()), default=0)
        if large < plan.threads:
            raise InputError(
                f"a cell needs {plan.threads} CPUs, one for each thread, and no node of the cluster has more than "
                f"{large:g}; set OMP_NUM_THREADS to that or less"
            )
        if not any(_fits(node, plan) for node in _nodes().values()):
            raise InputError(f"--device {plan.device}: no node of the cluster has a GPU beside {plan.threads} CPUs")
        yield


@dataclass(frozen=True)
class _Ask:
    """A cell on its way through the pool."""

    cell: Cell
    reference: str | None


class RayExecutor:
    """The Ray executor; see `Executor`. Use it in a `with` block: its actors hold nodes until it ends."""

    def __init__(self, plan: Plan, folder: RunFolder, show: Show, environment: Mapping[str, Any]) -> None:
        self._ray = ray_module()
        self._plan, self._folder, self._show, self._mine = plan, folder, show, environment
        self._peaks = {cell["id"]: cell["figures"].get("peak_bytes", 0) for cell in read_run(folder.path).cells}
        self._references: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}  # cell -> where its actor says how far it is; None: not asked yet
        self._cpus: set[str] = set()
        self._pool: Pool[_Ask] | None = None

    def run(self, cells: Work) -> dict[str, str]:
        """Run and keep each; cell -> status."""
        if not cells:
            return {}
        status = {}
        self._pool = self._pool or self._open(max(self._needs(*each) for each in cells))
        for ask, found, tries in self._pool.run([_Ask(*each) for each in cells]):
            kept = self._keep(ask.cell, found, tries)
            status[ask.cell.id] = kept["status"]
            self._shown.pop(str(ask.cell), None)
            self._show.finish(str(ask.cell), kept["status"], kept["reason"], kept["seconds"])
        if not timed(self._plan):
            self._close()  # what the next cells need may be more
        return status

    def _needs(self, cell: Cell, reference: str | None) -> int:
        """Bytes; what its reference held, where that is known. A library's own needs are not known before it runs."""
        return int(self._peaks.get(reference or cell.id, 0))

    def _open(self, memory: int) -> Pool[_Ask]:
        seats: Callable[[], dict[Hashable, Any]] = self._whole_nodes if timed(self._plan) else self._shares(memory)
        return Pool(
            seats,
            self._start,
            self._call,
            ready=self._refuse_other,
            stop=lambda actor: actor.stop.remote(),
            beat=self._beat,
            note=self._show.note,
        )

    def _whole_nodes(self) -> dict[Hashable, Any]:
        """A place on each node, with all its CPUs, and a GPU where one is needed."""
        fit = {key: node for key, node in _nodes().items() if _fits(node, self._plan)}
        return {key: {"node": key, "num_cpus": node["CPU"], **_gpu(self._plan)} for key, node in fit.items()}

    def _shares(self, memory: int) -> Callable[[], dict[Hashable, Any]]:
        """As many places on each node as its CPUs, memory and, where they are needed, GPUs give."""

        def seats() -> dict[Hashable, Any]:
            found: dict[Hashable, Any] = {}
            for key, node in _nodes().items():
                most = int(node["CPU"] // self._plan.threads)
                if gpu := _gpu(self._plan):
                    most = min(most, int(node.get("GPU", 0)))
                if memory and most:
                    most = max(1, min(most, int(node["memory"] // memory)))
                need = min(memory, int(node["memory"]))
                for share in range(most):
                    found[key, share] = {"node": key, "num_cpus": self._plan.threads, "memory": need or None, **gpu}
            return found

        return seats

    def _start(self, place: Mapping[str, Any]) -> Any:
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place["node"], soft=False)
        from .node import Runner

        variables = {name: os.environ[name] for name in _FROM_DRIVER if name in os.environ}
        random = {entry.name for entry in known_models() if entry.kind == "random"}
        models = sorted({model for _, model in self._plan.pairs()} - random)
        options = {name: value for name, value in place.items() if name != "node"}
        return (
            self._ray.remote(Runner)
            .options(**options, max_concurrency=3, max_restarts=0, scheduling_strategy=here)  # run, beside at and stop
            .remote(variables, list(self._mine["versions"]), models)
        )

    def _refuse_other(self, theirs: Mapping[str, Any]) -> None:
        """Raise where a node's software is not that of the driver.

        Raises:
            InputError: says what differs.
        """
        a, b = ({name: facts.get(name) for name in _SAME} for facts in (self._mine, theirs))
        differing = [f"{name} {a[name]}, there {b[name]}" for name in ("python", "source") if a[name] != b[name]]
        mine, others = a["versions"] or {}, b["versions"] or {}
        differing += [f"{k} {v}, there {others.get(k)}" for k, v in mine.items() if others.get(k) != v]
        if differing:
            raise InputError(
                f"a node of the cluster has other software than this machine, and cells cannot be mixed: "
                f"{'; '.join(differing)}; install the same on both"
            )
        if theirs["cpu"] not in self._cpus:
            self._cpus.add(theirs["cpu"])
            if len(self._cpus) > 1:
                self._show.note(
                    f"the nodes have different processors ({', '.join(sorted(self._cpus))}): ratios, each of one "
                    "process, hold; seconds of different cells are not alike"
                )

    def _call(self, actor: Any, ask: _Ask) -> Any:
        name = str(ask.cell)
        if name in self._shown:
            self._show.follow(name, "once more, since its node was lost", 0, 0)
        else:
            self._show.start(name)
        self._shown[name] = None
        return actor.run.remote(job_of(ask.cell, self._plan), self._reference(ask.reference), self._plan.timeout)

    def _reference(self, cell_id: str | None) -> Any:
        """A reference's file in the cluster's object store, put there once."""
        if cell_id is None:
            return None
        if cell_id not in self._references:
            self._references[cell_id] = self._ray.put(self._folder.result(cell_id).read_bytes())
        return self._references[cell_id]

    def _beat(self, actor: Any, ask: _Ask) -> None:
        """Show how far a cell is; asked without waiting for the answer."""
        name = str(ask.cell)
        asked = self._shown.get(name)
        if asked is not None:
            if not self._ray.wait([asked], timeout=0)[0]:
                return
            try:
                self._show.follow(name, *self._ray.get(asked))
            except self._ray.exceptions.RayError:
                return  # its node is lost; the pool will see it
        self._shown[name] = actor.at.remote()

    def _keep(self, cell: Cell, found: Any, tries: int) -> dict[str, Any]:
        scratch = self._folder.scratch(cell.id)
        kept: dict[str, Any] = asdict(cell)
        samples: Sequence[Mapping[str, Any]] = []
        if isinstance(found, Lost):
            why = f"lost {found.tries} times with its node, and given up; last: {found.reason}"
            kept |= {"status": "crashed", "reason": why, "stage": None, "figures": {}, "seconds": 0.0}
        else:
            kept |= {"started": found["started"], **found["cell"], "node": found["node"]}
            samples = found["samples"]
            for name, content in found["files"].items():
                Path(scratch, name).write_bytes(content)
        if tries > 1:
            kept["tries"] = tries
        self._folder.add(kept, samples, scratch)
        self._peaks[cell.id] = kept["figures"].get("peak_bytes", 0)
        return kept

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _gpu(plan: Plan) -> dict[str, int]:
    """What a cell's place has beside CPUs."""
    return {} if plan.device == CPU else {"num_gpus": 1}


def _fits(node: Mapping[str, float], plan: Plan) -> bool:
    return node["CPU"] >= plan.threads and (plan.device == CPU or node.get("GPU", 0) >= 1)


def _nodes() -> dict[str, dict[str, float]]:
    """The nodes that are there: id -> CPUs, GPUs and memory that Ray knows them to have."""
    names = ("CPU", "GPU", "memory")
    alive = [node for node in ray_module().nodes() if node["Alive"]]
    found = {node["NodeID"]: {name: float(node["Resources"].get(name, 0)) for name in names} for node in alive}
    return {key: node for key, node in found.items() if node["CPU"] > 0}
