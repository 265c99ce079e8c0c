"""Where models are on a device: the same suites run there, and nothing lies on the CPU that meets what lies there.

No GPU is needed: `elsewhere.py` stands in for one, and refuses what a GPU would refuse.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from crosslens.adapters import InputError, open_inspector
from crosslens.benchmarks import executors, worker
from crosslens.benchmarks.captions import machine
from crosslens.benchmarks.executors import job_of, joined, on_ray
from crosslens.benchmarks.memory import device_memory, mark_device
from crosslens.benchmarks.plan import Cell, Plan, make_plan
from crosslens.benchmarks.store import RunFolder, read_facts
from crosslens.benchmarks.timing import Sampling
from crosslens.tasks import load_model, load_task, tasks
from crosslens.tasks.training import Work
from crosslens.tasks.training_nets import trainings

from .elsewhere import ELSEWHERE, There, elsewhere
from .test_runner import RUN

NAMES = [task.name for task in tasks() if task.name != "training"]


def a_plan(**more: Any) -> Plan:
    return make_plan("smoke", backend=["hooks"], task=["planted"], model=["tiny-llama"], **more)


# ---- tasks


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_right_on_a_device_and_so_is_its_reference_and_nothing_hidden_is_copied(name: str) -> None:
    task = load_task(name)
    with elsewhere() as fetched:
        model, tokenizer = load_model(task.models.get("smoke", "tiny-llama"), device=ELSEWHERE)
        work = task.prepare(model, tokenizer, size="smoke")
        with open_inspector("hooks", model, tokenizer) as lens:
            result, reference = task.run(lens, work), task.reference(model, work)
            copied = []
            for call in (task.bare(model, work), task.step(lens, work)):
                call()  # what only the first call does is not timed
                fetched.clear()
                call()
                copied.append(list(fetched))
    assert all(isinstance(values, np.ndarray | np.generic) for values in (*result.values(), *reference.values()))
    assert task.score(result, reference, work, "float32").right
    assert copied[0] == copied[1]
    assert all(elements == 1 for _, elements in copied[1]), "transformers looks at a number or two of its masks"


def test_tdhook_weighs_its_steps_where_the_model_is() -> None:
    """It asks its own container of tensors, which knows no place unless it is told one."""
    task = load_task("saliency")
    with elsewhere():
        model, tokenizer = load_model("tiny-llama", device=ELSEWHERE)
        work = task.prepare(model, tokenizer, size="smoke")
        with open_inspector("tdhook", model, tokenizer) as lens:
            assert np.isfinite(task.run(lens, work)["change"]).all()


def test_the_nets_that_are_trained_compute_where_they_are_healthy_and_ill() -> None:
    for training in trainings(1):
        with elsewhere():
            for ill in (False, True):
                net = training.net(ELSEWHERE)
                net.ill = ill
                loss = net(training.batches[0][0].to(ELSEWHERE)).square().mean()
                loss.backward()
                grads = [parameter.grad for parameter in net.parameters()]
                assert all(isinstance(grad, There) for grad in grads)


def test_a_recorded_training_step_runs_where_the_model_is() -> None:
    """The recorder reads on the CPU: what it records is copied there."""
    task, work = load_task("training"), Work(trainings(1)[-1:])
    with elsewhere() as fetched:
        model, tokenizer = load_model("tiny-llama", device=ELSEWHERE)
        with open_inspector("hooks", model, tokenizer) as lens:
            task.bare(model, work)()
            assert fetched == []
            task.step(lens, work)()
            assert max(elements for _, elements in fetched) > 1


# ---- the stand-in itself: a check that it lets pass what a GPU refuses would prove nothing


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: x.gather(0, torch.zeros(1, dtype=torch.int64)),
        lambda x: torch.nn.functional.embedding(torch.arange(2), x[:, None]),
        lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1)),
    ],
)
def test_tensors_of_two_devices_do_not_meet(mix: Any) -> None:
    with elsewhere(), pytest.raises(RuntimeError, match="same device"):
        mix(torch.ones(3, device=ELSEWHERE))


def test_what_a_gpu_allows_is_allowed_and_copies_are_counted() -> None:
    with elsewhere() as fetched:
        x = torch.arange(3.0, device=ELSEWHERE)
        assert (x * torch.tensor(2.0))[torch.tensor([2])].device == ELSEWHERE
        assert x[[0, 2]].tolist() == [0.0, 2.0]
        assert float(x.sum()) == 3.0
        assert x.cpu().numpy().tolist() == [0.0, 1.0, 2.0]
        assert [elements for _, elements in fetched] == [2, 1, 3]
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()


# ---- a cell


@pytest.mark.parametrize("device", ["cpu", str(ELSEWHERE)])
def test_a_real_cell_runs_end_to_end_on_its_device(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = []
    load = worker.load_model
    monkeypatch.setattr(worker, "load_model", lambda *a, **k: placed.append(load(*a, **k)) or placed[-1])
    plan = replace(a_plan(), device=device, sampling=Sampling(pairs=3, most=3, seconds=5.0))
    cells, reports = plan.cells(), []
    for number, (cell, work) in enumerate(((cells[0], worker.reference), (cells[1], worker.backend))):
        folder = tmp_path / str(number)
        folder.mkdir()
        reports.append(worker.Report(folder))
        with elsewhere():
            work(job_of(cell, plan, reference=tmp_path / "0" / "result.npz"), reports[-1])
    assert [report.cell["status"] for report in reports] == ["done", "right"]
    assert [len(report.samples) for report in reports] == [3, 3]
    assert {str(next(model.parameters()).device) for model, _ in placed} == {device}
    assert reports[1].cell["score"]["max_rel_error"] < 1e-5
    with np.load(tmp_path / "1" / "result.npz") as kept:
        assert np.isfinite(kept["moved"]).all()


def test_a_worker_takes_the_gpu_that_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(worker, "_die_with_runner", lambda: None)
    monkeypatch.setattr(worker, "backend", lambda job, report: report.end("right"))
    cell = Cell("x", "backend", "hooks", "planted", "tiny-llama", 1)
    for device in ("cpu", "cuda", "cuda:1"):
        (tmp_path / "job.json").write_text(json.dumps(job_of(cell, replace(a_plan(), device=device))))
        worker.main(tmp_path)
    assert taken == ["cuda:1"]


def test_the_peak_of_a_gpu_is_that_since_the_backend_was_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[None] = []
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: reset.append(None))
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    mark_device()
    assert (reset, device_memory()) == ([], {})
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123)
    mark_device()
    assert (reset, device_memory()) == ([None], {"device_peak_bytes": 123})


# ---- a run


def test_on_a_gpu_cells_run_one_at_a_time_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crosslens.benchmarks.plan.threads", lambda: 4)
    here, there = a_plan(), a_plan(device="cuda")
    assert (here.device, here.jobs, here.threads) == ("cpu", 4, 1)
    assert (there.device, there.jobs, there.threads, there.warm) == ("cuda", 1, 4, False)
    assert a_plan(device="cuda:1", jobs=2).jobs == 2
    assert Plan.of(json.loads(json.dumps(there.facts()))) == there


def test_a_run_that_was_kept_before_there_were_devices_was_on_the_cpu() -> None:
    facts = dict(read_facts(RUN)["arguments"])
    facts.pop("device", None)
    assert Plan.of(facts).device == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps", ""])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=r"--device is .*; it must be cpu, cuda, or one of several GPUs"):
        a_plan(device=device)


def test_a_device_that_is_not_here_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(device: str) -> str:
        with pytest.raises(InputError) as error, joined("local", None, a_plan(device=device)):
            pass
        return str(error.value)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, says in (("13.0", "CUDA_VISIBLE_DEVICES can hide them"), (None, "is built for the CPU alone")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert says in refused("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "PyTorch finds 2 here" in refused("cuda:2")
    for device in ("cpu", "cuda", "cuda:1"):
        with joined("local", None, a_plan(device=device)):
            pass


def test_a_run_is_not_gone_on_with_on_another_device(tmp_path: Path) -> None:
    def facts(device: str) -> dict[str, Any]:
        plan = replace(a_plan(), device=device)
        return {"started": "now", "arguments": plan.facts(), "environment": {}, "random_models": [], "cells": ["x"]}

    RunFolder(tmp_path, facts("cpu")).close()
    with pytest.raises(InputError, match=r"arguments.device: 'cpu', now 'cuda'"):
        RunFolder.resume(tmp_path, facts("cuda"))
    RunFolder.resume(tmp_path, facts("cpu")).close()


def test_the_tables_say_on_which_gpu_the_models_were() -> None:
    facts = read_facts(RUN)
    environment = {**facts["environment"], "gpus": [{"name": "NVIDIA A", "memory": "1", "driver": "1"}] * 2}

    def said(**more: Any) -> list[str]:
        run: Any = SimpleNamespace(facts={"arguments": {**facts["arguments"], **more}, "environment": environment})
        return machine(run)

    assert not any("GPU" in line for line in (*said(), *said(device="cpu")))
    assert any(line.startswith("Models were on cuda (NVIDIA A);") for line in said(device="cuda"))


# ---- a cluster


def test_on_ray_a_cell_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"a": {"CPU": 8.0, "GPU": 2.0, "memory": 0.0}, "b": {"CPU": 8.0, "GPU": 0.0, "memory": 0.0}}
    monkeypatch.setattr(on_ray, "_nodes", lambda: found)
    monkeypatch.setattr(on_ray, "cluster", lambda address: executors.nullcontext())

    def places(plan: Plan) -> tuple[dict[Any, Any], dict[Any, Any]]:
        ray: Any = SimpleNamespace(_plan=replace(plan, threads=2))
        return on_ray.RayExecutor._whole_nodes(ray), on_ray.RayExecutor._shares(ray, 0)()

    whole, shared = places(a_plan())
    assert (set(whole), len(shared)) == ({"a", "b"}, 8)
    assert not any("num_gpus" in place for place in (*whole.values(), *shared.values()))
    whole, shared = places(a_plan(device="cuda"))
    assert whole == {"a": {"node": "a", "num_cpus": 8.0, "num_gpus": 1}}
    assert [place["num_gpus"] for place in shared.values()] == [1, 1]
    with joined("ray", None, replace(a_plan(device="cuda"), threads=2)):
        pass
    del found["a"]
    with (
        pytest.raises(InputError, match="no node of the cluster has a GPU"),
        joined("ray", None, a_plan(device="cuda")),
    ):
        pass
    with pytest.raises(InputError, match="on Ray it is cuda"), joined("ray", None, a_plan(device="cuda:1")):
        pass
