"""How costs grow: planted costs and leaks are found, points are what they say, and pages come from what was kept."""

from __future__ import annotations

import copy
import json
import mmap
import random
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslens.adapters import InputError, load_backend
from crosslens.benchmarks.drawn import write_svg
from crosslens.benchmarks.overhead.ways import unlike
from crosslens.benchmarks.scaling import worker
from crosslens.benchmarks.scaling.__main__ import able, main
from crosslens.benchmarks.scaling.axes import AXES, SITES, Point, bare, ids_of, model_of, native, recorded, through
from crosslens.benchmarks.scaling.figure import figure
from crosslens.benchmarks.scaling.fit import fit, growth, middle, theil_sen
from crosslens.benchmarks.scaling.reading import curve, grown, line, wrapping
from crosslens.benchmarks.scaling.table import latex, markdown
from crosslens.benchmarks.scaling.worker import EVERY, at_point, readings

X = (1, 5, 20, 80)


def planted(fixed: float, marginal: float, processes: int, noise: float, seed: int) -> list[dict[int, Any]]:
    """Samples of a known line, each process off by a factor of its own."""
    made = np.random.default_rng(seed)
    found = []
    for _ in range(processes):
        off = np.exp(noise * made.normal())
        found.append({x: off * (fixed + marginal * x) + noise * made.normal(size=8) for x in X})
    return found


@settings(deadline=None, max_examples=30)
@given(st.floats(-5, 5), st.floats(-2, 2), st.integers(1, 3))
def test_a_line_without_noise_is_found_exactly(fixed: float, marginal: float, processes: int) -> None:
    found = fit(planted(fixed, marginal, processes, 0.0, 0))
    assert found is not None
    for each, want in ((found.fixed, fixed), (found.marginal, marginal)):
        assert each.value == pytest.approx(want, abs=1e-9)
        assert each.high - each.low < 1e-9


def test_intervals_cover_what_was_planted_at_their_rate() -> None:
    hits = {"fixed": 0, "marginal": 0}
    for seed in range(200):
        found = fit(planted(2.0, 0.1, 3, 0.05, seed))
        assert found is not None
        hits["fixed"] += found.fixed.covers(2.0)
        hits["marginal"] += found.marginal.covers(0.1)
    assert all(0.90 <= each / 200 <= 0.99 for each in hits.values()), hits


def test_one_point_that_is_far_off_decides_nothing() -> None:
    x = np.array([1.0, 2, 3, 4, 5])
    fixed, marginal = theil_sen(x, np.array([[3.0, 5, 7, 9, 500]]))
    assert (fixed[0], marginal[0]) == (1.0, 2.0)
    assert fit([{1: np.ones(3), 2: np.ones(3)}]) is None, "two points are no line"
    assert fit([]) is None


def test_of_one_process_an_interval_is_of_its_samples() -> None:
    made = np.random.default_rng(0)
    one = middle([made.normal(10, 1, 50)])
    assert one.low < one.value < one.high < 11
    several = middle([np.array([1.0]), np.array([2.0]), np.array([3.0])])
    assert several.value == 2.0
    assert several.high - several.value == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_a_leak_is_caught_and_a_cache_is_none() -> None:
    hoard: list[Any] = []

    def leak() -> None:  # pages of its own: a heap that other tests have grown would take it without growing
        pages = mmap.mmap(-1, 200_000)
        pages.write(bytes(200_000))
        hoard.append([pages, object()])

    leaking = readings(leak, 100)
    for what, least in (("bytes", 150_000), ("objects", 0.9)):
        found = growth(np.array(leaking[what]), EVERY)
        assert found.low > least, (what, found)
    hoard.clear()
    still = readings(lambda: [bytearray(200_000)], 100)
    assert growth(np.array(still["objects"]), EVERY).low <= 0
    assert growth(np.array(still["bytes"]), EVERY).low <= 0
    filled_once = np.array([0] * 20 + [4_000_000] * 21)
    found = growth(filled_once, EVERY)
    assert found.low <= 0 < found.value


@pytest.mark.parametrize("axis", list(AXES))
def test_points_grow_in_one_thing_and_hooks_are_right_there(axis: str) -> None:
    about = AXES[axis]
    points = about.points()
    assert list(points) == sorted(points)
    assert len(about.points(quick=True)) == 3
    for x, point in list(points.items())[:2]:
        model, ids = model_of(point), ids_of(point)
        assert ids.shape == (point.batch, point.tokens)
        assert len(set(recorded(point))) == len(recorded(point)) == (0 if point.edits else point.sites or point.layers)
        assert {"sites": point.sites, "edits": point.edits, "depth": point.layers}.get(axis, x) == x
        want = native(model, point, ids)()
        with load_backend("hooks")(model) as lens:
            assert unlike(through(lens, point, ids)(), want) == ""
        if point.edits:
            assert unlike(bare(model, ids)(), want) != "", "edits must show"


def test_what_plain_hooks_record_is_what_the_model_says_itself() -> None:
    point = Point(layers=3)
    model, ids = model_of(point), ids_of(point)
    with torch.no_grad():
        own = model(ids, output_hidden_states=True).hidden_states
    found = native(model, point, ids)()
    for layer in range(point.layers - 1):  # the last of its own is behind the norm
        assert torch.equal(found[layer], own[layer + 1])
    more = dict(zip(recorded(Point(layers=3, sites=15)), native(model, Point(layers=3, sites=15), ids)(), strict=True))
    assert len(more) == 3 * len(SITES)
    for layer in range(3):
        at = f"blocks.{layer}"
        assert torch.allclose(more[f"{at}.resid_pre"] + more[f"{at}.attn.out"], more[f"{at}.resid_mid"], atol=1e-5)
        assert torch.allclose(more[f"{at}.resid_mid"] + more[f"{at}.mlp.out"], more[f"{at}.resid_post"], atol=1e-5)


def test_models_are_the_same_again_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    one, two = model_of(Point()), model_of(Point())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_wrong_backend_has_no_time() -> None:
    class Wrong(load_backend("hooks")):  # type: ignore[misc]
        def run(self, *args: Any, **kwargs: Any) -> Any:
            run = super().run(*args, **kwargs)
            for name in run:
                run[name].mul_(1.01)
            return run

    found = at_point(Wrong, Point(), {"axis": "batch", "x": 1}, 2, random.Random(0), "cpu")
    assert found["ways"]["through"]["status"] == "wrong"
    assert "off by 0.01" in found["ways"]["through"]["reason"]
    assert "s" not in found["ways"]["through"]
    assert len(found["ways"]["native"]["s"]) == 2


KEPT: dict[str, Any] = {
    "environment": {"python": "3.11", "cpu": "a CPU", "cores": {"logical": 2}, "load_average": [0.1, 0, 0],
                    "versions": {"torch": "2"}},
    "settings": {"processes": 2, "samples": 3, "calls": 20, "threads": 2, "gpu": None, "seconds": 60,
                 "devices": ["cpu"],
                 "left_out": {"captum": "it only attributes"}, "axes": {"sites": list(X), "depth": [2, 4, 8]}},
    "processes": [],
}  # fmt: skip


def _process(backend: str, repeat: int, fixed: float, each: float) -> dict[str, Any]:
    points = []
    for axis, values in KEPT["settings"]["axes"].items():
        for x in values:
            bare_s = [0.010, 0.011, 0.009]
            ways = {"bare": {"status": "bare", "s": bare_s}, "native": {"status": "right", "s": bare_s}}
            cost = 1e-3 * (fixed + each * x)
            ways["through"] = {"status": "right", "s": [s + cost for s in bare_s]}
            wrapped = {"open_s": [1e-3 * x], "close_s": [0.001], "parameters": x}
            points.append({"axis": axis, "x": x, "ways": ways, **wrapped})
    job = {"backend": backend, "repeat": repeat, "device": "cpu"}
    memory = {"every": EVERY, "bytes": [10, 60, 110, 160], "objects": [5, 5, 5, 5], "device_bytes": []}
    return {"job": job, "found": {"points": points, "growth": memory}}


def test_the_page_says_what_was_planted() -> None:
    kept = copy.deepcopy(KEPT)
    kept["processes"] = [_process("hooks", 0, 1.0, 0.5), _process("hooks", 1, 1.0, 0.5), _process("slow_one", 0, 9, 2)]
    kept["processes"][2]["found"]["points"][0]["ways"]["through"] = {"status": "wrong", "reason": "off by 1"}
    found = line(kept, "hooks", "sites")
    assert found is not None
    assert (found.fixed.value, found.marginal.value) == (pytest.approx(1.0), pytest.approx(0.5))
    assert set(curve(kept, "slow_one", "sites")) == {5, 20, 80}, "a wrong point has no time"
    wrapped, held = wrapping(kept, "hooks", "depth"), grown(kept, "hooks", "bytes")
    assert wrapped is not None
    assert wrapped.marginal.value == pytest.approx(1.0)
    assert held is not None
    assert held.value == 10.0
    page = markdown(kept)
    for text in ("| hooks | 1 [1, 1] | 500 [500, 500] | not measured |", "captum: it only attributes",
                 "slow_one: wrong, off by 1: sites 1", "memory grows", "There was no GPU"):  # fmt: skip
        assert text in page, text
    assert page == markdown(json.loads(json.dumps(kept)))
    assert r"slow\_one" in latex(kept)
    assert r"\bottomrule" in latex(kept)


def test_the_figure_is_the_same_file_again(tmp_path: Path) -> None:
    kept = copy.deepcopy(KEPT)
    kept["processes"] = [_process("hooks", 0, 1.0, 0.5)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_svg(figure(kept), tmp_path / folder / "scaling.svg")
    one, two = ((tmp_path / folder / "scaling.svg").read_bytes() for folder in ("a", "b"))
    assert one == two
    assert b"<svg" in one


def test_it_runs_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count()

    def run_job(module: str, job: Any, **_: Any) -> Any:
        next(runs)
        monkeypatch.setattr(worker, "hold_to", lambda threads: None)  # it would hold all of pytest
        return worker.measure({**job, "axes": {"sites": [1, 5, 20]}, "calls": 10})

    monkeypatch.setattr("crosslens.benchmarks.fresh.run_job", run_job)
    page = tmp_path / "page.md"
    main(page, ["hooks", "captum"], quick=True)
    kept = json.loads(page.with_suffix(".json").read_text())
    assert next(runs) == 1, "captum needs no process"
    assert page.read_text() == markdown(kept)
    assert (tmp_path / "scaling.svg").exists()
    assert {each["x"] for each in kept["processes"][0]["found"]["points"]} == {1, 5, 20}
    assert "captum" in kept["settings"]["left_out"]


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a \.md file"):
        main(tmp_path / "nowhere" / "page.md")
    with pytest.raises(InputError, match="no backend 'hoks'"):
        main(tmp_path / "page.md", ["hoks"])
    assert able(["comgra"])[0] == []
