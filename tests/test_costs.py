"""The study of costs: ways are held to one another, a page is a function of what was kept, and nothing is lost."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosslens.adapters import InputError
from crosslens.benchmarks import readme
from crosslens.benchmarks.costs import comparing, kpi, recorder, running, sweep, turns
from crosslens.benchmarks.costs.__main__ import main
from crosslens.benchmarks.costs.loops import LOOPS, Loop, residual
from crosslens.benchmarks.costs.page import markdown, sentence, summary
from crosslens.benchmarks.costs.parts import PARTS, jobs
from crosslens.benchmarks.costs.turns import WaysDifferError, in_turns
from crosslens.benchmarks.estimate import median_ratio
from crosslens.benchmarks.paper.sources import Results, read
from crosslens.benchmarks.studies import write_pages

from .test_runner import RUN

ROUND = {"rounds": 1, "repeat": 0}
ABOUT: dict[str, Any] = {
    "environment": {
        "python": "3.11", "platform": "Linux", "cpu": "a CPU", "cores": {"logical": 2}, "versions": {"torch": "2.13"},
    },
    "settings": {"threads": 1, "left_out": {}},
}  # fmt: skip


# What is measured


def test_a_sample_is_the_time_of_a_unit_and_every_round_has_each_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []
    monkeypatch.setattr(turns.time, "process_time", lambda: clock[0])

    def way(name: str, seconds: float, units: int) -> turns.Way:
        def call() -> int:
            seen.append(name)
            clock[0] += seconds
            return units

        return call

    ways = {"a": way("a", 6.0, 3), "b": way("b", 1.0, 1), "c": way("c", 0.5, 2)}
    assert in_turns(ways, 8, 0) == {"a": [2.0] * 8, "b": [1.0] * 8, "c": [0.25] * 8}
    rounds = [tuple(seen[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1, "the order is drawn anew"


def test_key_figures_one_by_one_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kpi.measure({"megabytes": [0.02, 0.05], **ROUND})
    assert [each["megabytes"] for each in found["sizes"]] == [0.02, 0.05]
    assert all(set(each["samples"]) == {"one pass", "separate", "copy", "new copy"} for each in found["sizes"])
    monkeypatch.setattr(kpi, "separately", lambda x: torch.full((len(x), found["kpis"]), torch.nan))
    with pytest.raises(WaysDifferError, match=r"0\.02 MB .* differ by nan"):
        kpi.measure({"megabytes": [0.02], **ROUND})


def test_comparing_is_timed_beside_the_bare_forwards() -> None:
    found = comparing.measure({"model": "tiny-llama", "texts": 20, "rounds": 2, "repeat": 0})
    assert (found["texts"], found["kinds"], found["blocks"]) == (20, 10, 3)
    assert found["tokens"][0] <= found["tokens"][1]
    assert {way: len(values) for way, values in found["samples"].items()} == {"bare": 2, "watched": 2, "compare": 2}
    assert min(found["samples"]["compare"]) > min(found["samples"]["bare"]) > 0


def test_memory_is_of_as_many_examples_as_were_asked_for() -> None:
    found = comparing.measure_memory({"model": "tiny-llama", "examples": 30})
    assert found["examples"] == 30
    assert found["bytes"] > 2**26, "this process has torch in it"


def test_recording_costs_time_and_bytes_beside_comgra_with_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comgra")
    found = recorder.measure({"steps": 2, "comgra_steps": 1, **ROUND})
    assert [each["name"] for each in found["loops"]] == list(LOOPS)
    for each in found["loops"]:
        assert len(each["samples"]) == 5
        assert set(each["bytes"]) == set(each["samples"]) - {"bare", "Recorder, not due"}
        assert all(size > 100 for size in each["bytes"].values())
    monkeypatch.setattr(recorder, "LOOPS", {"residual": residual})
    alone = recorder.measure({"steps": 1, "comgra_steps": 0, **ROUND})
    assert all("comgra, kpis" not in {**each["samples"], **each["bytes"]} for each in alone["loops"])


def test_a_recorder_that_records_otherwise_or_changes_the_training_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = {(0, "activation", "module:enter:output", "mean/mean"): 1.0}
    recorder.alike(mine, {key: value * (1 + 1e-5) for key, value in mine.items()})
    with pytest.raises(WaysDifferError, match="1 figures differ"):
        recorder.alike(mine, {key: value * 1.01 for key, value in mine.items()})
    with pytest.raises(WaysDifferError, match="not the same tensors"):
        recorder.alike(mine, {**mine, (1, "activation", "module:enter:output", "mean/mean"): 1.0})
    with pytest.raises(WaysDifferError, match="not the same tensors"):
        recorder.alike({}, {})
    honest = recorder.ours

    @contextmanager
    def nudging(loop: Loop, out: Path, **options: Any) -> Iterator[recorder.Steps]:
        with honest(loop, out, **options) as run:
            yield run
        with torch.no_grad():
            next(loop.model.parameters()).add_(1e-6)

    monkeypatch.setattr(recorder, "ours", nudging)
    with pytest.raises(WaysDifferError, match="Recorder changed the training"):
        recorder.check(residual, comgra=False)


def test_a_sweep_is_timed_beside_loops_that_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"model": "tiny-llama", "backends": ["hooks"], "sample": 2, **ROUND}
    found = sweep.measure(job)
    assert [each["local"] for each in found["maps"]] == ["resid_post", "attn.z"]
    for each in found["maps"]:
        assert (
            set(each["samples"]) == set(each["differences"]) == {"sweep, hooks", "loop, hooks", "loop, hooks directly"}
        )
        assert max(each["differences"].values()) < 1e-4
    honest = sweep.swept
    monkeypatch.setattr(sweep, "swept", lambda *of: lambda which: 1.1 * honest(*of)(which))
    with pytest.raises(WaysDifferError, match="resid_post: the ways differ"):
        sweep.measure(job)


# What is asked for


def test_jobs_take_turns_and_what_is_not_timed_runs_once() -> None:
    made = jobs(list(PARTS), 3, None, False, [])
    assert list(dict.fromkeys(job["part"] for job in made)) == list(PARTS)
    for name, part in PARTS.items():
        own = [job for job in made if job["part"] == name]
        assert len(own) == (3 if part.rounds else 1) * len(part.jobs)
        assert {job["rounds"] for job in own} == {part.rounds}
    assert {job["rounds"] for job in jobs(["kpi", "memory"], 1, 7, False, [])} == {7, 0}
    assert made == json.loads(json.dumps(made))


def test_backends_that_are_not_there_are_left_out() -> None:
    of_sweep, of_recorder = jobs(["sweep", "recorder"], 1, 1, True, ["pyvene", "comgra"])
    assert of_sweep["backends"] == ["hooks", "nnsight", "transformer_lens"]
    assert of_recorder["comgra_steps"] == 0


def test_a_part_or_page_that_is_none_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run_job", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(InputError, match="there is no part 'kpis'; there are kpi, compare"):
        main(part=["kpis"])
    with pytest.raises(InputError, match=r"must be a \.md file"):
        main(out=tmp_path / "costs.txt")


# What is kept


def found_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a process would find, planted: each process is slower than the one before, and keeps its ratios."""
    slow = 1.0 + job["repeat"]

    def samples(**ways: float) -> dict[str, list[float]]:
        return {way: [slow * value] * job["rounds"] for way, value in ways.items()}

    if job["part"] == "kpi":
        ways = samples(**{"one pass": 0.002, "separate": 0.02, "copy": 0.001, "new copy": 0.0005})
        return {"kpis": 15, "sizes": [{"megabytes": mb, "difference": 0.0, "samples": ways} for mb in job["megabytes"]]}
    if job["part"] == "compare":
        ways = samples(bare=10.0, watched=10.5, compare=11.5)
        return {"texts": job["texts"], "tokens": [29, 44], "kinds": 10, "blocks": 30, "samples": ways}
    if job["part"] == "memory":
        return {"examples": job["examples"], "bytes": 600 * 2**20}
    if job["part"] == "recorder":
        ways = samples(**{"bare": 1.0, "Recorder, comgra's figures": 2.5, "comgra, kpis": 16.0})
        sizes = {"Recorder, comgra's figures": 1204.0, "comgra, kpis": 30914.0}
        return {"loops": [{"name": "residual MLP", "samples": ways, "bytes": sizes}]}
    ways = samples(**{"sweep, hooks": 0.01, "loop, hooks": 0.12, "loop, hooks directly": 0.1})
    far = {"sweep, hooks": 2e-5, "loop, hooks": 0.0, "loop, hooks directly": 1e-5}
    about = {"layers": 30, "inner": 14, "differences": far, "samples": ways}
    return {"maps": [{"local": "resid_post", **about}, {"local": "attn.z", **about}]}


def kept_of(processes: int = 2, rounds: int | None = None) -> dict[str, Any]:
    made = jobs(list(PARTS), processes, rounds, False, [])
    return {**ABOUT, "processes": [{"job": job, "load": 0.25, "found": found_of(job)} for job in made]}


def test_the_page_says_what_was_planted() -> None:
    kept = kept_of()
    before = copy.deepcopy(kept)
    page = markdown(kept)
    assert kept == before
    assert "| 35 | 3.00 | 10.0 [10.0, 10.0] | 2.00 [2.00, 2.00] | 4.00 [4.00, 4.00] |" in page
    assert "| compare | 17.2 | 1.15 [1.15, 1.15] |" in page
    assert "| 100,000 | 600 |" in page
    assert "| residual MLP | comgra, kpis | 24000 | 16.0 [16.0, 16.0] | 30,914 |" in page
    assert "| attn.z, 30 x 14 | sweep, hooks | 15.0 | 10.0 [10.0, 10.0] | 2.0e-05 |" in page
    assert "over up to 2 processes" in page
    assert "Load when a process began: 0.2 to 0.2." in page
    assert "What is not here" not in page


def test_intervals_are_over_processes_and_one_sample_has_none() -> None:
    kept = kept_of(3, rounds=2)
    ratios = ([1.1, 1.2], [1.15, 1.3], [1.2, 1.25])
    own = [each for each in kept["processes"] if each["job"]["part"] == "compare"]
    for process, values in zip(own, ratios, strict=True):
        process["found"]["samples"] = {"bare": [1.0, 2.0], "watched": [1.0, 2.0], "compare": [values[0], 2 * values[1]]}
    want = median_ratio([np.array(values) for values in ratios])
    assert f"{want.value:.2f} [{want.low:.2f}, {want.high:.2f}] |" in markdown(kept)
    alone = markdown(kept_of(1, rounds=1))
    assert "| compare | 11.5 | 1.15 |" in alone
    assert "says nothing about how processes differ" in alone


def test_what_went_wrong_or_was_not_measured_is_on_the_page() -> None:
    kept = kept_of(1)
    kept["settings"] = {"threads": 1, "left_out": {"pyvene": "pyvene is not installed"}}
    kept["processes"] = [each for each in kept["processes"] if each["job"]["part"] != "kpi"]
    next(each for each in kept["processes"] if each["job"]["part"] == "sweep")["found"] = {"error": "it broke"}
    page = markdown(kept)
    assert "- pyvene: pyvene is not installed\n- kpi: not measured\n- sweep, process 1: it broke\n" in page
    assert "## A patching map" not in page
    assert sentence(kept) == ""
    assert "key figures" not in summary(kept)
    assert summary({**kept, "processes": []}) == ""


def test_the_readme_has_it_where_the_run_has(tmp_path: Path) -> None:
    results = read(RUN)
    without = Results(results.folder, results.run, {}, results.backends)
    assert "crosslens.benchmarks.costs --out" in readme.costs(without)
    assert "|" not in readme.costs(without)
    text = readme.costs(Results(results.folder, results.run, {"costs": kept_of()}, results.backends))
    assert "takes 15.0 ms an edit for the residual stream (30 layers x 14 positions), where the fastest loop" in text
    assert "takes 150: 10.0 [10.0, 10.0] times faster; and 15.0 ms an edit for the heads" in text
    assert "those of a forward an edit, within 2e-05, for a sample of the edits." in text
    assert "| 1 MB: 10.0, 35 MB: 10.0, 300 MB: 10.0 times faster than a PyTorch reduction each |" in text
    assert "| 1.15 [1.15, 1.15] of the bare forwards |" in text
    assert "| 600 MiB for 1,000 examples, 600 MiB for 100,000 examples |" in text
    assert "| 2.50 [2.50, 2.50] of the bare step, 1,204 bytes a step |" in text
    assert "| 16.0 [16.0, 16.0] of the bare step, 30,914 bytes a step |" in text


# What is kept on disk


def test_what_was_kept_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []
    broken: set[str] = set()

    def run_job(module: str, job: dict[str, Any], **_: Any) -> dict[str, Any]:
        if len(ran) == 3 and "cut" in broken:
            raise KeyboardInterrupt
        ran.append((job["part"], job["repeat"]))
        return {"error": "it broke"} if job["part"] in broken else found_of(job)

    monkeypatch.setattr(running, "run_job", run_job)
    page = tmp_path / "costs.md"
    every = jobs(list(PARTS), 2, None, False, [])
    broken |= {"cut", "compare"}
    with pytest.raises(KeyboardInterrupt):
        running.collect(every, ABOUT, page)
    assert len(json.loads(page.with_suffix(".json").read_text())["processes"]) == 3
    broken.clear()
    first = running.collect(every, ABOUT, page)
    assert len(ran) == len(every) + 1, "the one that broke is measured again, and nothing else"
    assert ran.count(("compare", 0)) == 2
    assert json.loads(page.with_suffix(".json").read_text()) == first
    assert [each["job"]["part"] for each in first["processes"]] == [
        name for name in PARTS for each in every if each["part"] == name
    ]

    ran.clear()
    later = {**ABOUT, "environment": {**ABOUT["environment"], "source": "of another day"}}
    assert running.collect(every, later, page) == first, "what it says of the machine is of when it was measured"
    assert running.collect(jobs(["kpi"], 1, None, False, []), ABOUT, page) == first, (
        "fewer are asked for, none are lost"
    )
    assert ran == []
    running.collect(jobs(["kpi"], 3, None, False, []), ABOUT, page)
    assert ran == [("kpi", 2)]
    changed = running.collect(jobs(["kpi"], 1, 5, False, []), ABOUT, page)
    assert ran == [("kpi", 2), ("kpi", 0)]
    assert [each["job"]["rounds"] for each in changed["processes"] if each["job"]["part"] == "kpi"] == [5]
    assert [each for each in changed["processes"] if each["job"]["part"] != "kpi"] == [
        each for each in first["processes"] if each["job"]["part"] != "kpi"
    ]


def test_what_is_of_another_machine_or_program_is_refused_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "run_job", lambda module, job, **_: found_of(job))
    page, path = tmp_path / "costs.md", tmp_path / "costs.json"
    some = jobs(["kpi"], 1, None, True, [])
    running.collect(some, ABOUT, page)
    before = path.read_bytes()
    other = {**ABOUT, "environment": {**ABOUT["environment"], "cpu": "another", "versions": {}}}
    with pytest.raises(InputError, match=r"costs\.json was measured with another cpu, versions; remove it or name"):
        running.collect(some, other, page)
    assert path.read_bytes() == before
    for damaged in ("{", "[]", '{"processes": []}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match="holds nothing that this program has kept"):
            running.collect(some, ABOUT, page)
        assert path.read_text() == damaged


def test_the_program_writes_a_page_that_is_rendered_again_from_what_it_kept(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    page = tmp_path / "studies" / "costs.md"
    main(out=page, part=["kpi"], processes=1, rounds=0, quick=True)
    text = page.read_text()
    assert "| 0.1 |" in text
    assert "- compare: not measured" in text
    page.unlink()
    assert write_pages(tmp_path) == [page]
    assert page.read_text() == text
