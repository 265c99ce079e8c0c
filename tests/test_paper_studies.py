"""What the paper says of correctness, costs and published figures: numbers that were worked out by hand come out."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from crosslens.benchmarks.correctness import kept as answers
from crosslens.benchmarks.correctness.asking import Distance
from crosslens.benchmarks.correctness.design import Cell
from crosslens.benchmarks.correctness.judge import SHORT, Class, Verdict
from crosslens.benchmarks.paper import others
from crosslens.benchmarks.published.catalogue import CLAIMS

MACHINE = {
    "cpu": "Some CPU", "cores": {"physical": 2, "logical": 4}, "versions": {"torch": "2.13.0+cpu"}, "python": "3.11",
    "load_average": [0.1, 0.1, 0.1],
}  # fmt: skip


def way(seconds: float, status: str = "right") -> dict[str, Any]:
    return {"status": status, "s": [seconds] * 6, "reason": "" if status in ("right", "bare") else "off by 1"}


def overhead() -> dict[str, Any]:
    """Two backends, three processes; every block alike: hooks twice the bare forward, nnsight three times, or wrong."""
    shape = {"name": "small", "batch": 1, "tokens": 16, "operations": ["capture_residuals", "zero"], "samples": 6}
    processes = []
    for backend, times in (("hooks", 2.0), ("nnsight", 3.0)):
        for repeat in range(3):
            ways = {"bare": way(1.0, "bare"), "native": way(2.0), "through": way(times), "directly": way(2.0)}
            ways |= {"again": way(times)} if backend == "hooks" else {}
            cells = [{"operation": "capture_residuals", "shape": "small", "ways": ways}]
            wrong = {"bare": way(1.0, "bare"), "through": {"status": "wrong", "reason": "off by 1"}}
            cells += [{"operation": "zero", "shape": "small", "ways": wrong}] if backend == "nnsight" else []
            job = {"backend": backend, "repeat": repeat, "device": "cpu", "shapes": [shape]}
            processes.append({"job": job, "found": {"alone_s": [1.0], "cells": cells}})
    settings = {
        "model": "tiny-llama", "processes": 3, "seconds": 1.0, "threads": 1, "shapes": [shape], "devices": ["cpu"],
        "left_out": {}, "gpu": None,
    }  # fmt: skip
    return {"environment": MACHINE, "settings": settings, "processes": processes}


def scaling(leak: int = 0) -> dict[str, Any]:
    """Hooks cost 1 ms a call and 0.01 ms a site beyond the forward."""
    points = [
        {"axis": "sites", "x": x, "ways": {"bare": way(0.1, "bare"), "through": way(0.101 + 1e-5 * x)}}
        for x in (1, 5, 20, 80)
    ]
    growth = {"bytes": [10**6 + leak * i for i in range(20)], "objects": [5] * 20, "every": 10}
    processes = [
        {
            "job": {"backend": "hooks", "repeat": repeat, "device": "cpu"},
            "found": {"points": points, "growth": growth if repeat == 0 else {}},
        }
        for repeat in range(3)
    ]
    settings = {
        "processes": 3, "samples": 6, "calls": 200, "threads": 1, "left_out": {}, "devices": ["cpu"], "gpu": None,
        "axes": {"sites": [1, 5, 20, 80]},
    }  # fmt: skip
    return {"environment": MACHINE, "settings": settings, "processes": processes}


def correctness(*kinds: str, why: str = "why") -> dict[str, Any]:
    cell = Cell("llama", "blocks.1.resid_post", "capture", "all", "eager", "none", 1)
    far = Distance(1e-7, 1e-7, 1.0, 1.0, "value")
    rows = []
    for dtype, kind in zip(("float64", "float32", "bfloat16"), kinds, strict=True):
        verdict = Verdict(cast(Class, kind), None if kind == "refused" else far, 1e-7, "", why)
        rows.append(answers.Row("hooks", cell, dtype, verdict))
    backends = {"hooks": {"library": "torch", "version": "2.13.0", "missing": None, "strength": 3}}
    kept: dict[str, Any] = json.loads(answers.text(rows, MACHINE, (100, 300), backends))
    return kept


def test_what_operations_cost() -> None:
    found = others.overhead_macros(overhead())
    assert found["OverheadLeast"] == "2.00 [2.00, 2.00] (plain hooks)"
    assert found["OverheadMost"] == "3.00 [3.00, 3.00] (nnsight)"
    assert found["OverheadFree"] == "none of them"
    assert found["OverheadPrices"] == "1.00 to 1.50"
    assert (found["OverheadNulls"], found["OverheadOff"]) == ("1", "0")
    assert found["OverheadBackends"] == "two"
    kept = overhead()
    for process in kept["processes"][:3]:
        process["found"]["cells"][0]["ways"]["through"] = way(1.0)
        process["found"]["cells"][0]["ways"]["again"] = way(1.1)
    found = others.overhead_macros(kept)
    assert found["OverheadFree"] == "plain hooks"
    assert found["OverheadOff"] == "1", "the control says that this run is not to be trusted"
    for process in kept["processes"]:
        for cell in process["found"]["cells"]:
            cell["ways"]["through"] = {"status": "wrong", "reason": "off by 1"}
    assert others.overhead_macros(kept)["OverheadLeast"] == "nothing", "what is wrong has no time"
    table = others.overhead(overhead())
    assert "over 3 processes" in table
    assert r"nnsight & 3.00(1) & -- \\" in table


@pytest.mark.parametrize(("leak", "said"), [(0, "no backend"), (4096, "plain hooks")])
def test_how_costs_grow(leak: int, said: str) -> None:
    found = others.scaling_macros(scaling(leak))
    assert found["ScalingFixed"] == "1 (plain hooks) to 1 (plain hooks)"
    assert found["ScalingSite"] == "10 (plain hooks) to 10 (plain hooks)"
    assert found["ScalingGrows"] == said
    assert found["ScalingCalls"] == "200"
    assert "three processes" in others.scaling(scaling())


def test_classes_of_answers_are_counted() -> None:
    found = others.correctness_macros(correctness("exact", "noise", "refused"))
    counts = {key: found[f"Correct{key}"] for key in ("Answers", "Exact", "Noise", "Refused", "Bad", "Backends")}
    assert counts == {"Answers": "3", "Exact": "1", "Noise": "1", "Refused": "1", "Bad": "no other", "Backends": "one"}
    found = others.correctness_macros(correctness("exact", "silently wrong", "error"))
    assert found["CorrectBad"] == "2 (plain hooks 2)"
    short = others.correctness_macros(correctness("silently wrong", "noise", "noise", why=f"off; it is {SHORT}"))
    only = "each of them no further off, in a float64 model, than what rounding to float32 somewhere makes"
    assert short["CorrectBad"] == f"1 (plain hooks 1), {only}"
    assert "of 100 that there are (300 answers" in others.correctness(correctness("exact", "noise", "refused"))


def test_verdicts_on_published_figures_are_counted() -> None:
    ratios = [claim for claim in CLAIMS.values() if claim.unit == "×" and claim.rule == "equals" and claim.measure]
    ratios = [claim for claim in ratios if claim.figure and claim.figure > 1 and not claim.id.startswith("control.")]
    one, other = ratios[:2]
    rows = {
        one.id: [{"samples": [[1.0, one.figure]] * 6}] * 3,
        other.id: [{"samples": [[1.0, 7 * (other.figure or 1)]] * 6}] * 3,
    }
    kept = {"environment": MACHINE, "settings": {"processes": 3, "tiny": False, "apart": False}, "rows": rows}
    found = others.published_macros(kept)
    assert found["PublishedVerdicts"] == "agrees 1 and differs 1"
    assert found["PublishedRows"] == "2"
    table = others.published(kept)
    assert "agrees" in table
    assert "differs" in table
    assert "3 processes" in table
