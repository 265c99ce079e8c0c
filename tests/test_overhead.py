"""What operations cost: equal work is held to, planted times come out, and pages are made of what was kept."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crosslens.adapters import InputError, load_backend
from crosslens.adapters.architectures import describe
from crosslens.adapters.conformance.models import tiny_model
from crosslens.benchmarks import fresh
from crosslens.benchmarks.direct import DIRECTLY, blocks_of
from crosslens.benchmarks.drawn import write_svg
from crosslens.benchmarks.idioms.catalogue import HERE
from crosslens.benchmarks.overhead import ways, worker
from crosslens.benchmarks.overhead.__main__ import able, main, shapes
from crosslens.benchmarks.overhead.figure import figure
from crosslens.benchmarks.overhead.idiomatic import native_call, operation_of
from crosslens.benchmarks.overhead.operations import OPERATIONS, Work, prepare
from crosslens.benchmarks.overhead.reading import cells, controls, slowed, together
from crosslens.benchmarks.overhead.table import control_note, latex, markdown
from crosslens.benchmarks.overhead.ways import Cell, Way, cell_of, unlike
from crosslens.benchmarks.overhead.worker import run_blocks
from crosslens.tasks import load_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def work() -> Work:
    model, tokenizer = load_model("tiny-llama")
    return prepare(model, tokenizer, 1, 8)


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", ["hooks", "pyvene", "tdhook", "penzai", "nnsight", "transformer_lens"])
def test_each_library_used_directly_gives_the_blocks_that_are_asked_for(name: str) -> None:
    layers = [0, 2]
    pytest.importorskip(f"crosslens.adapters.{name}", exc_type=ImportError)
    model, _ = tiny_model("llama")
    model.requires_grad_(False)
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out: seen.append(out.clone()))
        for path in blocks_of(describe(model), layers)
    ]
    model(IDS)
    for handle in handles:
        handle.remove()
    with DIRECTLY[name](model, IDS, layers) as call:
        first, second = call(), call()
        assert unlike(first, seen) == ""
        assert len({each.data_ptr() for each in (*first, *second)}) == 2 * len(seen), "each is the caller's own"
        assert not any(each.requires_grad for each in first)
    assert hooks(model) == 0, "the bare forward would run them too"


@pytest.mark.parametrize("backend", ["hooks", "pyvene", "tdhook", "captum"])
def test_every_operation_is_right_through_crosslens_and_in_the_librarys_own_way(work: Work, backend: str) -> None:
    frozen = [p.requires_grad for p in work.model.parameters()]
    with ExitStack() as stack:
        lens = stack.enter_context(load_backend(backend)(work.model))
        found = {}
        for name in OPERATIONS:
            cell = cell_of("small", name, work, 1, {"through": lens}, backend, stack)
            cell.judge()
            cell.sample(random.Random(0))
            cell.finish()
            found[name] = {way: each.status for way, each in cell.ways.items()}
    through = {name for name, each in found.items() if each["through"] == "right"}
    directly = {name for name, each in found.items() if each["directly"] == "right"}
    every, without = set(OPERATIONS), {"capture_everything", "add", "scale", "apply"}
    wanted = {"captum": {"attribute"}, "tdhook": every}.get(backend, every - {"attribute"})
    assert through == wanted, found
    assert {name for name, each in found.items() if each["directly"] == "no program"} >= without
    if backend == "captum":
        assert directly == {"replace", "zero", "gradients", "attribute"}, found
    else:
        assert directly == every - without, found
    assert [p.requires_grad for p in work.model.parameters()] == frozen, "pyvene's own way freezes, but not the model"
    assert all(p.grad is None for p in work.parameters)
    assert hooks(work.model) == 0


def test_an_operation_is_the_text_of_the_program_with_its_set_up_done_once(work: Work) -> None:
    program = HERE / "hooks" / "zero_neuron.py"
    call = operation_of(program)(model=work.model, ids=work.ids, layer=1, neuron=work.neuron)
    want = load_backend("hooks")(work.model).run(work.ids, edits=[_zero(work)]).logits
    assert torch.equal(call(), want)
    assert torch.equal(call(), want)


def _zero(work: Work) -> Any:
    from crosslens.adapters import zero

    return zero(f"blocks.{work.layer}.mlp.post", units=[work.neuron])


def test_plain_hooks_are_right_by_what_the_model_says_itself(work: Work) -> None:
    with torch.no_grad():
        own = work.model(work.ids, output_hidden_states=True).hidden_states
    found = native_call("capture_residuals", work)()
    assert all(torch.equal(a, b) for a, b in zip(found[:-1], own[1:], strict=False)), "the last is behind the norm"
    everything = dict(zip(work.everything, native_call("capture_everything", work)(), strict=True))
    assert torch.equal(everything["logits"], work.model(work.ids).logits)
    assert len(everything) == 4 + 3 * 10 - 1 or len(everything) == len(work.everything)
    weight = work.model.model.layers[1].self_attn.o_proj.weight
    made = everything["blocks.1.attn.z"].flatten(2) @ weight.T
    assert torch.allclose(made, everything["blocks.1.attn.out"], atol=1e-5)


class Clock:
    """Seconds that pass only when a call takes them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def watch(self) -> Callable[[], float]:
        start = self.now
        return lambda: self.now - start

    def taking(self, seconds: float, result: Any) -> Any:
        def call() -> Any:
            self.now += seconds
            return result

        return call


def planted(clock: Clock, through: float, result: Any = None, samples: int = 4, **options: Any) -> Cell:
    """Bare takes 1 s, plain hooks 2 s, a backend what is planted."""
    right = torch.arange(6.0).reshape(1, 2, 3)
    found = {
        "bare": Way(clock.taking(1.0, right + 1), "bare"),
        "native": Way(clock.taking(2.0, right), "right"),
        "through": Way(clock.taking(through, right if result is None else result), "right"),
    }
    return Cell({"shape": "small", "operation": "add"}, found, samples, watch=clock.watch, **options)


def test_planted_times_come_out() -> None:
    clock = Clock()
    cell = planted(clock, 3.0, patience=100.0)
    cell.judge()
    assert run_blocks([cell], random.Random(0), 1000.0, clock) == 4
    cell.finish()
    kept = {"processes": [{"job": {"backend": "b", "device": "cpu"}, "found": {"cells": [cell.kept()]}}]}
    (found,) = cells(kept)
    ratio, price = found.ratio("through", "bare"), found.ratio("through", "native")
    assert ratio is not None
    assert price is not None
    assert (ratio.value, price.value) == (pytest.approx(3.0), pytest.approx(1.5))
    assert found.over("through") == pytest.approx(2000.0)
    assert (found.samples("through"), found.samples("bare")) == (4, 4)


def test_a_slow_way_has_fewer_samples_and_the_budget_ends_blocks() -> None:
    clock = Clock()
    cell = planted(clock, 30.0, patience=6.0)
    cell.judge()
    run_blocks([cell], random.Random(0), 1000.0, clock)
    assert {name: len(way.seconds) for name, way in cell.ways.items()} == {"bare": 3, "native": 3, "through": 1}
    cell = planted(clock, 3.0, patience=100.0, samples=9)
    cell.judge()
    assert run_blocks([cell], random.Random(0), 13.0, clock) == 3, "a block takes 6 s; none begins after 13"


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (1.001 * torch.arange(6.0).reshape(1, 2, 3), "off by 0.001"),
        (torch.full((1, 2, 3), torch.nan), "off by nan"),
        (torch.zeros(1, 2, 4), r"\(1, 2, 4\), must be \(1, 2, 3\)"),
        ((torch.zeros(1, 2, 3),) * 2, "2 tensors, must be 1"),
        (None, ""),
    ],
)
def test_what_is_wrong_has_no_time(result: Any, says: str) -> None:
    clock = Clock()
    cell = planted(clock, 3.0, result)
    cell.judge()
    run_blocks([cell], random.Random(0), 100.0, clock)
    cell.finish()
    kept = cell.kept()["ways"]["through"]
    if not says:
        assert kept["s"]
        return
    assert kept["status"] == "wrong"
    assert "s" not in kept
    assert re.search(says, kept["reason"]), kept


def test_a_result_that_goes_wrong_while_it_is_timed_has_no_time_either() -> None:
    clock = Clock()
    right = torch.arange(6.0).reshape(1, 2, 3)
    cell = planted(clock, 3.0, right.clone())
    cell.judge()
    cell.sample(random.Random(0))
    cell.ways["through"].result.mul_(2)
    cell.finish()
    assert cell.kept()["ways"]["through"]["status"] == "wrong"


def test_tensors_must_be_owned_tokens_exact_and_edits_visible() -> None:
    clock, once = Clock(), [torch.ones(1, 2, 3), 2 * torch.ones(1, 2, 3)]
    cell = planted(clock, 1.0, once)
    cell.ways["native"] = Way(lambda: [each.clone() for each in once], "right")
    cell.judge()
    assert cell.ways["through"].status == "wrong"
    assert "share memory" in cell.ways["through"].reason
    assert unlike(torch.tensor([[1, 2, 4]]), torch.tensor([[1, 2, 3]])) == "tensor 0: 1 wrong tokens"
    cell = planted(clock, 1.0)
    cell.ways["bare"] = cell.ways["native"]
    cell.judge()
    cell.sample(random.Random(0))
    assert {each["status"] for each in cell.kept()["ways"].values()} == {"vacuous"}


def test_what_raises_is_a_result_and_what_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "LIMIT", 0.2)

    def raises() -> None:
        raise RuntimeError("no such\nthing")

    def forever() -> None:
        while True:
            with suppress(Exception):  # as a library might
                sum(range(1000))

    for call, status, reason in ((raises, "failed", "RuntimeError: no such thing"), (forever, "slow", "broken off")):
        cell = planted(Clock(), 1.0)
        cell.ways["through"] = Way(call, "right")
        cell.judge()
        assert cell.ways["through"].status == status
        assert reason in cell.ways["through"].reason
        assert cell.ways["native"].call is not None, "the others go on"


def test_rows_are_texts_that_the_tokenizer_gives_back(work: Work) -> None:
    assert work.tokenizer(work.text, add_special_tokens=False)["input_ids"] == work.ids[0].tolist()
    assert not torch.equal(work.ids, work.source)
    again = prepare(work.model, work.tokenizer, 1, 8)
    assert torch.equal(again.vector, work.vector)
    assert again.neuron == work.neuron
    model, tokenizer = load_model("tiny-gpt2")
    with pytest.raises(InputError, match="of the family llama; this model's is gpt2"):
        prepare(model, tokenizer, 1, 8)


SETTINGS: dict[str, Any] = {
    "model": "tiny-llama", "processes": 2, "seconds": 1, "threads": 1, "devices": ["cpu"], "gpu": None,
    "shapes": [{"name": "small", "batch": 1, "tokens": 16, "operations": ["zero"], "samples": 6}],
    "left_out": {"comgra": "it has none of these operations"},
}  # fmt: skip
ENVIRONMENT = {"python": "3.11", "cpu": "a CPU", "cores": {"logical": 2}, "load_average": [0.1, 0, 0],
               "versions": {"torch": "2"}}  # fmt: skip


def kept_of(**factors: float) -> dict[str, Any]:
    """A kept study in which each way of `zero` takes so many times the bare forward, to a percent."""
    made, processes = np.random.default_rng(0), []
    for repeat in range(2):
        for backend in ("hooks", "slow"):
            bare = 0.01 * np.exp(0.01 * made.normal(size=6))
            found = {"bare": {"status": "bare", "s": bare.tolist()}}
            for way, factor in factors.items():
                times = (5 if backend == "slow" and way == "through" else 1) * factor
                found[way] = {"status": "right", "s": (times * bare * np.exp(0.01 * made.normal(size=6))).tolist()}
            if backend == "slow":
                found.pop("again", None)
            cell = {"shape": "small", "operation": "zero", "ways": found}
            job = {"backend": backend, "repeat": repeat, "device": "cpu", "shapes": SETTINGS["shapes"]}
            processes.append({"job": job, "found": {"cells": [cell], "alone_s": [0.01]}})
    return {"environment": ENVIRONMENT, "settings": SETTINGS, "processes": processes}


def test_the_page_says_what_was_planted() -> None:
    kept = kept_of(native=1.2, through=2.0, directly=1.6, again=2.0)
    found = {cell.backend: cell for cell in cells(kept)}
    price = found["slow"].ratio("through", "directly")
    assert price is not None
    assert price.value == pytest.approx(5 * 2 / 1.6, rel=0.02)
    ratio = together([found["hooks"]], "through", "bare")
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0, rel=0.02)
    page = markdown(kept)
    for text in ("## small: 1 x 16 tokens", "not measured", "comgra: it has none", "**zero**"):
        assert text in page, text
    rows = [line.split(" | ")[:2] for line in page.partition("**zero**")[2].splitlines() if line.startswith("| ")][1:]
    assert [name for name, _ in rows] == ["| hooks", "| slow"], "cheapest first"
    assert [float(shown.split()[0]) for _, shown in rows] == pytest.approx([2.0, 10.0], rel=0.02)
    assert page == markdown(json.loads(json.dumps(kept)))
    assert r"\toprule" in latex(kept)
    assert "slow" in latex(kept)
    assert slowed(kept) == {}, "nothing was measured of capture_one"
    kept["processes"][1]["found"] = {"error": "the process ended with -9: "}
    assert "slow: the process ended with -9" in markdown(kept)


def test_a_control_that_excludes_1_is_told() -> None:
    fair, unfair = (kept_of(native=1.2, through=2.0, directly=1.6, again=again) for again in (2.0, 6.0))
    assert all(each.covers(1.0) for each in controls(fair).values())
    assert control_note(fair).endswith("0 exclude 1.")
    assert "1 exclude 1 (zero (small))" in control_note(unfair)
    assert "1 exclude 1" in markdown(unfair)
    unfair["processes"] = [each for each in unfair["processes"] if each["job"]["backend"] != "hooks"]
    assert "no control" in control_note(unfair)


def test_a_wrong_way_is_told_and_has_no_ratio() -> None:
    kept = kept_of(native=1.2, through=2.0, directly=1.6)
    kept["processes"][3]["found"]["cells"][0]["ways"]["through"] = {"status": "wrong", "reason": "off by 1"}
    (slow,) = (cell for cell in cells(kept) if cell.backend == "slow")
    assert slow.ratio("through", "bare") is None, "wrong in one process is wrong"
    assert "slow through the Inspector: wrong, off by 1: zero (small)" in markdown(kept)


def test_the_figure_is_the_same_file_again(tmp_path: Path) -> None:
    kept = kept_of(native=1.2, through=2.0, directly=1.6)
    drawn = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_svg(figure(kept), tmp_path / folder / "overhead.svg")
        drawn.append((tmp_path / folder / "overhead.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert b"<svg" in drawn[0]


def test_it_runs_as_a_program_and_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "hold_to", lambda threads: None)  # it would hold all of pytest
    runs: list[str] = []

    def run_job(module: str, job: Any, **_: Any) -> Any:
        runs.append(job["backend"])
        if len(runs) == 2:
            raise KeyboardInterrupt
        small = {**job["shapes"][0], "operations": ["capture_one", "zero"]}
        return worker.measure({**job, "shapes": [small]})

    monkeypatch.setattr(fresh, "run_job", run_job)
    page = tmp_path / "page.md"
    with pytest.raises(KeyboardInterrupt):
        main(page, ["hooks", "tdhook", "comgra"], "tiny-llama", quick=True)
    assert not page.exists()
    main(page, ["hooks", "tdhook", "comgra"], "tiny-llama", quick=True)
    assert sorted(runs[:1] + runs[2:]) == ["hooks", "tdhook"], "the one that was done is not run again"
    kept = json.loads(page.with_suffix(".json").read_text())
    assert page.read_text() == markdown(kept)
    assert (tmp_path / "overhead.svg").exists()
    assert len(controls(kept)) == 2
    page.unlink()
    here, settings = kept["environment"], kept["settings"]
    for about, processes in (
        ({"environment": here, "settings": settings}, 2),
        ({"environment": here, "settings": {**settings, "model": "another"}}, 0),
        ({"environment": {**here, "source": "another"}, "settings": settings}, 0),
    ):
        gone_on = fresh.collect("no program", [], about, page, threads=1, seconds=1)
        assert len(gone_on["processes"]) == processes, "what was measured otherwise does not stand in one table"


def test_a_process_that_dies_or_hangs_is_told() -> None:
    found = fresh.run_job("there_is_no_such_module", {}, threads=1, seconds=100)
    assert found["error"].startswith("the process ended with 1: ")
    assert "there_is_no_such_module" in found["error"]
    assert fresh.run_job("json.tool", {}, threads=1, seconds=100)["error"] == "the process ended with 0: "
    assert fresh.run_job("timeit", {}, threads=1, seconds=0.001)["error"] == "took longer than 0 s"


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a \.md file"):
        main(tmp_path / "nowhere" / "page.md")
    with pytest.raises(InputError, match="no backend 'hoks'"):
        main(tmp_path / "page.md", ["hoks"])
    with pytest.raises(InputError, match="family llama; this model's is gpt2"):
        main(tmp_path / "page.md", ["hooks"], "tiny-gpt2")
    assert able(["hooks", "comgra"]) == (["hooks"], {"comgra": "it has none of these operations"})
    assert [shape["samples"] for shape in shapes(quick=True)] == [2]
