"""Ray: a run and a comparison on a cluster of several nodes are those of this machine, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from crosslens.adapters import BackendNotInstalledError, InputError, open_inspector
from crosslens.benchmarks import cli
from crosslens.benchmarks.executors import executor, on_ray
from crosslens.benchmarks.plan import Plan
from crosslens.benchmarks.run import execute, facts
from crosslens.benchmarks.store import RunFolder, StoredRun, read_run
from crosslens.tasks import Comparison, compare, load_model, ray_cluster
from crosslens.tasks.compare_shards import compare_on_ray
from crosslens.tasks.ray_pool import MOST_TRIES, Lost, Pool

from .gated import GATE
from .test_compare import stories
from .test_runner import ROOT, Right, Told, a_plan

ray = pytest.importorskip("ray")

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of a head without CPUs and three nodes with two each; this process is its driver."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # others may fill the memory of the machine
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(GATE, str(tmp_path_factory.mktemp("gate") / "open"))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
        try:
            for _ in range(3):
                made.add_node(num_cpus=2, **SMALL)
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def processes(name: str) -> list[psutil.Process]:
    """Workers of the cluster that are doing this, such as `ray::Replica.window`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


def at_work() -> list[psutil.Process]:
    """Actors with a cell: the process of each has one of its own."""
    busy = []
    for runner in processes("ray::Runner"):
        with contextlib.suppress(psutil.Error):
            if runner.children():
                busy.append(runner)
    return busy


def raylet_of(node: Any) -> int:
    """The process that is the parent of a node's workers."""
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)


def wait_for(what: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


# ---- the pool


def test_what_is_lost_runs_again_a_few_times_and_is_taken_once(nodes: Any) -> None:
    class Worker:
        def ready(self) -> str:
            return "here"

        def work(self, job: int) -> int:
            if job == 3:
                os._exit(1)
            if job == 9:
                raise InputError("nine is no number")
            time.sleep(0.05)
            return 10 * job

    def pool() -> Pool[int]:
        actors = ray.remote(Worker).options(num_cpus=1)
        return Pool(
            lambda: {"a": 0, "b": 1}, lambda _: actors.remote(), lambda actor, job: actor.work.remote(job),
            ready=told.append,
        )  # fmt: skip

    told: list[str] = []
    with pool() as some:
        found = {job: (result, tries) for job, result, tries in some.run(range(6))}
    lost = found.pop(3)[0]
    assert isinstance(lost, Lost)
    assert lost.tries == MOST_TRIES
    assert {job: result for job, (result, _) in found.items()} == {job: 10 * job for job in (0, 1, 2, 4, 5)}
    assert {tries for _, tries in found.values()} == {1}
    assert len(told) >= MOST_TRIES, "each actor that died had a successor"
    with pool() as some, pytest.raises(InputError, match="nine is no number"):
        list(some.run([9, 1, 2]))


# ---- runs

DRIVER = """
import sys
from pathlib import Path
from crosslens.benchmarks.executors import executor, joined
from crosslens.benchmarks.run import execute, facts
from crosslens.benchmarks.store import RunFolder
from tests.test_ray import gated
from tests.test_runner import Told

plan, now = gated(), facts(gated(), "ray")
with joined("ray", sys.argv[2], plan):
    folder = RunFolder(Path(sys.argv[1]), now)
    with executor("ray", plan, folder, Told(), now["environment"]) as cells:
        execute(plan, folder, Told(), cells)
"""


def gated() -> Plan:
    return replace(a_plan(Right), tasks=("tests.gated:Gated",))


def test_a_run_loses_and_doubles_no_cell_when_the_driver_is_killed_and_a_node_is_lost(
    nodes: Any, tmp_path: Path
) -> None:
    out, plan = tmp_path / "run", gated()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(out), nodes.address], cwd=ROOT, env=os.environ)
    try:
        wait_for(lambda: lines(out / "cells.jsonl") or driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    before = [cell["id"] for cell in read_run(out).cells]
    assert 1 <= len(before) < len(plan.cells())
    wait_for(lambda: not processes("ray::Runner"), 30)  # nothing outlives the driver

    now = facts(plan, "ray")
    folder, told = RunFolder.resume(out, now), Told()

    def lose_one_node() -> None:
        first, second = wait_for(lambda: busy if len(busy := at_work()) == 2 else None)
        wait_for(lambda: "running the task" in told.stages)
        held.extend([first.ppid(), second.ppid()])
        (raylet,) = (node for node in nodes.list_all_nodes() if raylet_of(node) == held[0])
        nodes.remove_node(raylet)
        Path(os.environ[GATE]).touch()

    held: list[int] = []  # nodes at work when one was lost, by their process
    with executor("ray", plan, folder, told, now["environment"]) as cells:
        loser = threading.Thread(target=lose_one_node)
        loser.start()
        assert execute(plan, folder, told, cells)
        loser.join()
    folder.close()
    nodes.add_node(num_cpus=2, **SMALL)

    run = read_run(out)
    assert len(set(held)) == 2, "two timed cells were under way, on two nodes"
    assert sorted(cell["id"] for cell in run.cells) == sorted(cell.id for cell in plan.cells())
    assert [cell["id"] for cell in run.cells][: len(before)] == before
    assert len(told.finished) == len(run.cells) - len(before)
    assert max(cell.get("tries", 1) for cell in run.cells) == 2, "the lost node's cell ran again"
    assert {cell["status"] for cell in run.cells} == {"done", "right"}
    assert "once more, since its node was lost" in told.stages
    same_as_here(run, out)
    alone(run)


def same_as_here(run: StoredRun, out: Path) -> None:
    """The files that came back are what this process finds."""
    import torch

    truth = Right().reference(load_model("tiny-llama")[0], torch.arange(3, 11)[None])["residual"]
    for cell in run.cells:
        with np.load(out / "results" / f"{cell['id']}.npz") as found:
            np.testing.assert_allclose(found["residual"], truth, rtol=0, atol=1e-6)
        table = pd.read_csv(out / "results" / f"{cell['id']}.csv")
        assert table["largest"].tolist() == pytest.approx([truth.max()], abs=1e-6)
    assert run.samples.groupby("cell").size().to_dict() == {cell["id"]: 4 for cell in run.cells}


def alone(run: StoredRun) -> None:
    """No two cells were on one node at once."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for cell in run.cells:
        start = pd.Timestamp(cell["started"]).timestamp()
        spans.setdefault(cell["node"]["id"], []).append((start, start + cell["seconds"]))
    for node in spans.values():
        for (_, end), (start, _) in zip(sorted(node), sorted(node)[1:], strict=False):
            assert start >= end - 1, "`started` is in whole seconds"


# ---- comparisons

SITES = ["blocks.*.resid_post", "blocks.1.mlp.post"]
ASKED: dict[str, Any] = {"sites": SITES, "directions": "embed", "batch_size": 4, "window": 8, "seed": 3}


def equal(a: Comparison, b: Comparison) -> None:
    """To the last bit: the same windows were merged in the same order."""
    pd.testing.assert_frame_equal(a.table, b.table, check_exact=True)
    assert a.examples.equals(b.examples)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.vectors["embed"], b.vectors["embed"])
    assert (a.n, a.complete, a.facts) == (b.n, b.complete, b.facts)


def test_a_comparison_is_that_of_one_process_whatever_the_workers_and_with_one_killed(
    nodes: Any, tmp_path: Path
) -> None:
    texts = stories(96)
    with open_inspector("hooks", *load_model("tiny-llama")) as lens:
        whole = compare(lens, texts, model="tiny-llama", out=tmp_path / "one", **ASKED)

    def kill_one() -> None:
        os.kill(wait_for(lambda: processes("ray::Replica.window"))[0].pid, signal.SIGKILL)

    seen: list[int] = []
    killer = threading.Thread(target=kill_one)
    killer.start()
    three = compare_on_ray(
        "tiny-llama", "hooks", texts, workers=3, out=tmp_path / "three", progress=lambda n, of: seen.append(n), **ASKED
    )
    killer.join()
    equal(three, whole)
    equal(Comparison.load(tmp_path / "three"), whole)
    assert seen == list(range(8, 97, 8)), "each window once, in order"

    half = tmp_path / "one" / "part-00003.parquet"
    half.write_bytes(half.read_bytes()[:-10])  # what one process wrote, a cluster goes on with
    equal(compare_on_ray("tiny-llama", "hooks", texts, workers=2, out=tmp_path / "one", resume=True, **ASKED), whole)
    equal(compare_on_ray("tiny-llama", "hooks", iter(texts), workers=1, **ASKED), whole)


# ---- mistakes, before anything is done


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["crosslens", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


RUN_SMOKE = ("run", "--suite", "smoke", "--backend", "hooks", "--task", "ioi")


def test_without_ray_the_error_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "run"
    assert "pip install 'crosslens[ray]'" in refused(
        capsys, monkeypatch, *RUN_SMOKE, "--executor", "ray", "--out", str(out)
    )
    assert not out.exists()
    with pytest.raises(BackendNotInstalledError, match=r"pip install 'crosslens\[ray\]'"):
        compare_on_ray("tiny-llama", "hooks", stories(), sites=SITES)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port at which something listens that says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_wrong_address_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "_JOINS", 0.5)
    start = time.monotonic()
    for address, why in {
        "127.0.0.1:1": r"no Ray cluster answers at 127.0.0.1:1: .*; `ray start --head` starts one",
        "rubbish": "write HOST:PORT of the cluster's head",
        "ray://10.0.0.1:10001": "run this on a machine of the cluster",
        "10.0.0.1:99999": "write HOST:PORT",
        f"127.0.0.1:{free_port}": "is no Ray cluster that can be joined: no answer",
    }.items():
        with pytest.raises(InputError, match=why), ray_cluster.cluster(address):
            pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="no Ray cluster answers"), ray_cluster.cluster():
        pass
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((*RUN_SMOKE, "--executor", "rai"), "there is no executor 'rai'; did you mean 'ray'?"),
        ((*RUN_SMOKE, "--ray-address", "local"), "--ray-address is of --executor ray"),
        ((*RUN_SMOKE, "--executor", "ray", "--jobs", "1"), "--jobs is of --executor local"),
        (("compare", "x.csv", "--executor", "local", "--workers", "2"), "--workers is of --executor ray"),
        (("compare", "x.csv", "--ray-address", "local"), "--ray-address is of --executor ray"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert why in refused(capsys, monkeypatch, *arguments)


def test_what_is_not_timed_shares_nodes_by_cpus_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"large": {"CPU": 5.0, "memory": 7e9}, "small": {"CPU": 1.0, "memory": 9e9}}
    monkeypatch.setattr(on_ray, "_nodes", lambda: sizes)
    plan = replace(a_plan(Right), threads=2)
    folder = RunFolder(tmp_path / "run", facts(plan, "ray"))
    try:
        cells = on_ray.RayExecutor(plan, folder, Told(), {})
        assert cells._whole_nodes() == {"large": {"node": "large", "num_cpus": 5.0}}
        shares = {"node": "large", "num_cpus": 2, "memory": None}
        assert cells._shares(0)() == {("large", 0): shares, ("large", 1): shares}
        assert cells._shares(4 * 10**9)() == {("large", 0): {**shares, "memory": 4 * 10**9}}
    finally:
        folder.close()


def test_a_cluster_without_a_large_enough_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_nodes", lambda: {"small": {"CPU": 2.0, "memory": 1e9}})
    monkeypatch.setattr(on_ray, "cluster", lambda address: contextlib.nullcontext())
    with (
        pytest.raises(InputError, match=r"needs 4 CPUs, .* no node of the cluster has more than 2; set OMP"),
        on_ray.joined(None, replace(a_plan(Right), threads=4)),
    ):
        pass
