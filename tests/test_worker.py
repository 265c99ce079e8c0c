"""What a worker times beside the backend: native hooks on the same model, where they can do the step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from crosslens.adapters import Inspector
from crosslens.benchmarks import worker
from crosslens.benchmarks.memory import device_memory
from crosslens.benchmarks.timing import Sampling
from crosslens.tasks import load_model

from .test_runner import Right, Unable, in_this_process


class Falters(Right):
    """Its step works once a process, for the backend under test."""

    def step(self, lens: Inspector, work: torch.Tensor) -> Callable[[], Any]:
        def fail() -> None:
            raise RuntimeError("not with me")

        return fail


def beside(task: Right, folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What is timed beside a backend, what the cell says of it, and hooks left on the model afterwards."""
    model, tokenizer = load_model("tiny-llama")
    report = worker.Report(folder)
    with ExitStack() as stack:
        found = worker._native(stack, task, model, tokenizer, torch.arange(3, 11)[None], report)
    left = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    return found, report.cell, left


def test_native_hooks_are_open_on_the_same_model_and_leave_it_as_it_was(tmp_path: Path) -> None:
    found, cell, left = beside(Right(), tmp_path)
    assert list(found) == ["hooks"]
    assert "no_hooks" not in cell
    assert left == []


@pytest.mark.parametrize(("task", "says"), [(Unable, "attribute (notimpl): "), (Falters, "RuntimeError: not with me")])
def test_what_hooks_cannot_is_said_and_is_no_fault_of_the_backend(task: type[Right], says: str, tmp_path: Path) -> None:
    found, cell, left = beside(task(), tmp_path)
    assert found == {}
    assert cell["no_hooks"].startswith(says)
    assert cell["status"] is None
    assert left == []


def test_two_inspectors_are_open_while_blocks_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call through each gives the same tensor, while both are open: equal work."""
    seen: list[torch.Tensor] = []
    original = worker.time_blocks

    def watched(calls: dict[str, Callable[[], Any]], *args: Any, **more: Any) -> Any:
        assert list(calls) == ["bare", "hooks", "step"]
        seen.extend(calls[name]()["blocks.0.resid_post"] for name in ("hooks", "step"))
        return original(calls, *args, **more)

    monkeypatch.setattr(worker, "time_blocks", watched)
    report = in_this_process(Right, tmp_path)
    assert report.cell["status"] == "right"
    assert torch.equal(*seen)
    assert seen[0].data_ptr() != seen[1].data_ptr()
    assert all(sample["hooks_s"] > 0 for sample in report.samples)


def test_the_order_of_blocks_is_drawn_for_each_process(tmp_path: Path) -> None:
    orders = []
    for number, cell in enumerate(("x.hooks.1", "x.hooks.2", "x.hooks.1")):
        (tmp_path / str(number)).mkdir()
        report = in_this_process(Right, tmp_path / str(number), id=cell)
        orders.append([sample["order"] for sample in report.samples])
    assert orders[0] == orders[2], "the seed of the run and the cell decide"
    assert orders[0] != orders[1]


def test_the_second_name_of_a_backend_runs_that_backend(tmp_path: Path) -> None:
    report = in_this_process(Right, tmp_path, backend="hooks (A/A)")
    assert report.cell["status"] == "right"
    assert report.cell["library"] == "torch"
    assert len(report.samples) == 4


def test_where_nothing_is_timed_nothing_is_opened_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_native", lambda *_: pytest.fail("hooks were opened"))
    report = in_this_process(Right, tmp_path, sampling=asdict(Sampling(0, 0, 0.0)))
    assert report.cell["status"] == "right"
    assert report.samples == []
    assert "timing" not in report.cell


def test_memory_of_a_gpu_is_a_figure_only_where_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert device_memory() == {}
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 123)
    assert device_memory() == {"device_peak_bytes": 123}
