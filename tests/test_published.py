"""Published figures: verdicts follow from intervals, pages from what was kept, and arms do equal work."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosslens.adapters import InputError
from crosslens.benchmarks import timing
from crosslens.benchmarks.program import chosen
from crosslens.benchmarks.published import (
    nnbench,
    noise_floors,
    tdhook_bench,
    torchlens_table,
    vllm_lens,
    whole_process,
)
from crosslens.benchmarks.published.__main__ import main
from crosslens.benchmarks.published.catalogue import CLAIMS, groups
from crosslens.benchmarks.published.claim import Claim, Found, Kept, Scale, Source, found, short, verdict
from crosslens.benchmarks.published.disk import megabytes
from crosslens.benchmarks.published.intervene import mlp, tdhook_intervenes
from crosslens.benchmarks.published.page import escaped, latex, markdown, rows
from crosslens.benchmarks.published.study import run, study
from crosslens.benchmarks.published.subjects import agree
from crosslens.benchmarks.published.worker import measured

TINY = Scale(tiny=True)
HERE = Source("a study", "a place", "1", "2026")


@pytest.fixture(scope="module", autouse=True)
def as_in_a_process_of_its_own() -> Iterator[None]:
    """nnsight's own programs write `value.save()` and `with loss.backward()`, which our adapter, opened here, undid."""
    import nnsight
    from nnsight._c import mount, unmount
    from nnsight.intervention import backward

    plain, taken = torch.Tensor.backward, "save" not in vars(object)
    backward.install()
    if taken:
        mount(nnsight.save, "save")
    yield
    torch.Tensor.backward = plain  # type: ignore[method-assign]
    if taken:
        unmount("save")


def a_claim(figure: float | None = 2.0, **more: Any) -> Claim:
    return Claim("a.row", HERE, "said", figure, "a workload", measure=lambda scale: {}, group="g", **more)


def timed(ratio: float, spread: float = 0.01, processes: int = 3, seed: int = 0) -> list[Kept]:
    """Processes whose pairs have one true ratio."""
    draw = np.random.default_rng(seed)
    return [
        {"samples": [[0.1, 0.1 * ratio * math.exp(draw.normal(0, spread))] for _ in range(15)]}
        for _ in range(processes)
    ]


@settings(max_examples=40)
@given(ratio=st.floats(0.05, 50), claimed=st.floats(0.05, 50))
def test_a_ratio_agrees_if_and_only_if_its_interval_covers_the_figure(ratio: float, claimed: float) -> None:
    claim = a_claim(claimed, half=0.0)
    seen = found(claim, timed(ratio))
    assert seen.estimate is not None
    judged = verdict(claim, seen)
    assert seen.estimate.value == pytest.approx(ratio, rel=0.02)
    assert (judged.word == "agrees") == (seen.estimate.low <= claimed <= seen.estimate.high)
    if judged.word == "differs" and claimed != 1 and not seen.estimate.covers(1.0):
        same = (ratio > 1) == (claimed > 1)
        assert ("same side" if same else "other side") in judged.text


def test_the_last_digit_that_was_published_is_not_held_against_it() -> None:
    kept = timed(2.004, spread=1e-9)
    assert verdict(a_claim(2.0, half=0.005), found(a_claim(), kept)).word == "agrees"
    assert verdict(a_claim(2.0, half=0.003), found(a_claim(), kept)).word == "differs"


def test_a_wide_interval_decides_nothing_by_covering() -> None:
    claim = a_claim(2.0)
    seen = found(claim, timed(1.5)[:1] + timed(2.6)[:1] + timed(2.0)[:1])
    assert seen.estimate is not None
    assert seen.estimate.covers(2.0)
    assert verdict(claim, seen).word == "undecided"


def test_microseconds_are_of_what_is_compared() -> None:
    claim = a_claim(300.0, unit="µs", half=0.5)
    kept = [{"samples": [[1e-4, 3e-4], [1e-4, 3.001e-4]]} for _ in range(3)]
    seen = found(claim, kept)
    assert seen.estimate is not None
    assert seen.estimate.value == pytest.approx(300.05)
    assert verdict(claim, seen).word == "agrees"
    assert (seen.bare_s, seen.processes, seen.count) == (pytest.approx(1e-4), 3, 6)
    assert seen.added_ms == pytest.approx(0.20005)


@pytest.mark.parametrize(
    ("rule", "values", "word"),
    [
        ("below", [0.0, 1.0, 1.99], "holds"),
        ("below", [0.0, 1.0, 2.0], "does not hold"),
        ("up to", [1.2, 2.1], "holds"),
        ("up to", [1.2, 1.9], "does not hold"),
        ("equals", [1.9, 2.2], "agrees"),
        ("equals", [2.1, 2.2], "differs"),
    ],
)
def test_values_are_judged_by_their_range(rule: Any, values: list[float], word: str) -> None:
    claim = a_claim(2.0, rule=rule, unit="", half=0.0)
    assert verdict(claim, found(claim, [{"values": values}])).word == word


def test_what_cannot_be_judged_says_why() -> None:
    nothing = verdict(replace(a_claim(), measure=None, missing="a GPU"), Found())
    assert (nothing.word, nothing.text) == ("not measured", "cannot be measured here: a GPU")
    seen = found(a_claim(), [{"error": "ValueError: wrong by 1"}])
    assert verdict(a_claim(), seen).text == "failed here: ValueError: wrong by 1"
    assert verdict(a_claim(None), found(a_claim(None), timed(2.0))).word == "no figure"
    partly = found(a_claim(), [*timed(2.0), {"error": "died"}])
    assert (partly.processes, partly.errors) == (3, ("died",))


def test_every_row_has_a_source_a_measure_or_a_reason() -> None:
    for claim in CLAIMS.values():
        assert claim.said
        assert claim.source.work
        assert (claim.measure is None) == bool(claim.missing), claim.id
        assert (claim.measure is None) == (not claim.group), claim.id
        assert claim.measure is None or claim.why is not None, claim.id
        assert claim.id.startswith("control.") or claim.source.place.count("/") or "arXiv" in claim.source.place
    assert len({(claim.source.work, claim.said) for claim in CLAIMS.values()}) == len(CLAIMS)
    assert sorted(each for some in groups(list(CLAIMS)).values() for each in some) == sorted(
        claim.id for claim in CLAIMS.values() if claim.measure is not None
    )


def test_the_published_seconds_of_vllm_lens_for_each_position() -> None:
    """By hand from the notebook: 2447.824302 s of 1,000 x 1,021.536 positions to 274.039894 of 1,000 x 328.125."""
    (_, hugging_face), (_, tl) = vllm_lens.RUNS["hf"], vllm_lens.RUNS["transformer_lens"]
    assert vllm_lens.running(hugging_face) == pytest.approx(8.9324, abs=1e-4)
    assert vllm_lens.for_each_position(hugging_face) == pytest.approx(8.9324 * 328.125 / 1021.536, abs=1e-4)
    assert vllm_lens.total(hugging_face) == pytest.approx(8.1, abs=0.05), "the lower end of its headline"
    assert vllm_lens.total(tl) == pytest.approx(43.8, abs=0.05), "the upper end"


def test_what_is_wrong_has_no_time() -> None:
    right = torch.ones(3)
    assert agree(right, right, "x") == 0
    with pytest.raises(ValueError, match=r"logits: wrong by 1\.0e-01"):
        agree(right * 0.9, right, "logits")
    with pytest.raises(ValueError, match=r"logits: \(2,\) where \(3,\) is right"):
        agree(right[:2], right, "logits")
    with pytest.raises(ValueError, match="wrong by nan"):
        agree(right * math.nan, right, "logits")


def test_an_arm_that_errs_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdhook_bench, "nnsight_intervenes", lambda wrapped, x, times: (x, x, x))
    assert measured("tdhook.intervene", TINY)["error"].startswith("ValueError: a state: wrong by")


APART = ("torchlens.fastlog", "torchlens.trace", "tdhook.method")  # rows that change, or start, whole processes
LIGHT = [claim.id for claim in CLAIMS.values() if claim.measure is not None and claim.id not in APART]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """Everything but what takes processes of its own, tiny, in this process."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_LEAST_SECONDS", 0.0)  # what is timed says nothing: once is enough
        patch.setattr(timing, "_MOST_WARMUPS", 2)
        patch.setattr(timing.gc, "collect", lambda: 0)
        values = {each: [measured(each, TINY)] for each in LIGHT}
    return {
        "environment": {
            "cpu": "a_cpu",
            "cores": {"physical": 2},
            "python": "3",
            "versions": {"torch": "2", "ray": None},
        },
        "settings": {"processes": 1, "apart": False, "tiny": True, "seconds": 0.0, "seed": 0},
        "rows": values,
    }


def test_all_arms_run_and_do_what_the_reference_does(kept: dict[str, Any]) -> None:
    assert {each: some[0]["error"] for each, some in kept["rows"].items() if "error" in some[0]} == {}
    facts = {each: some[0].get("facts", {}) for each, some in kept["rows"].items()}
    assert facts["torchlens.nnsight"]["tensors"] == facts["torchlens.hooks"]["tensors"]
    assert facts["tdhook.cache_nnsight"]["compared"] > 20
    # 2 layers, attention and MLP; 9 prompt tokens, 3 new ones: with the cache 9 + 1 + 1, without it 9 + 10 + 11
    assert facts["nnsight.generation"] == {"hooks_positions": 4 * 30, "nnsight_positions": 4 * 11}
    assert facts["nnsight.generation_equal"] == {"hooks_positions": 4 * 11, "nnsight_positions": 4 * 11}
    assert facts["tdhook.gradients"]["passes"] == 2


def test_noise_collapses_and_a_bug_stays(kept: dict[str, Any]) -> None:
    assert min(kept["rows"]["noise.collapse"][0]["values"]) > 6
    assert np.abs(kept["rows"]["noise.bug"][0]["values"]).max() < 0.5
    facts = kept["rows"]["noise.collapse_llama"][0]["facts"]["llama"]
    assert facts["float64"] > 1e-9, "the softmax of eager attention is in float32"
    assert facts["softmax"] < facts["float64"] / 100


def test_the_softmax_is_put_back() -> None:
    before, x = torch.nn.functional.softmax, torch.linspace(0, 1, 4, dtype=torch.float64)
    exact = x.softmax(0)
    assert (torch.nn.functional.softmax(x, dim=0, dtype=torch.float32).double() - exact).abs().max() > 1e-12
    with noise_floors.float64_softmax():
        assert torch.equal(torch.nn.functional.softmax(x, dim=0, dtype=torch.float32), exact)
    assert torch.nn.functional.softmax is before


def test_attribution_by_hooks_is_the_gradient_by_hand() -> None:
    model, clean, corrupt = nnbench._subject(TINY)
    got = nnbench._plainly(model, clean, corrupt)()
    there, here = (model(ids, output_hidden_states=True).hidden_states[1] for ids in (clean, corrupt))
    step, scores = 1e-3, []
    for sign in (1, -1):  # the first block's output moved along the difference, by a hook: a central difference
        moved = here + sign * step * (there - here)
        handle = model.transformer.h[0].register_forward_hook(lambda module, inputs, output, moved=moved: moved)
        logits = model(corrupt).logits[0, -1]
        handle.remove()
        scores.append(float((logits[1] - logits[2]).detach()))
    assert float(got[0]) == pytest.approx((scores[0] - scores[1]) / (2 * step), rel=0.05)


def test_the_page_and_the_table_are_functions_of_what_was_kept(kept: dict[str, Any]) -> None:
    again = json.loads(json.dumps(kept))
    page = markdown(again)
    assert page == markdown(kept)
    assert "Tiny models" in page
    for claim, seen, judged, why in rows(kept):
        assert claim.said in page
        assert judged.text in page
        assert why, claim.id
        assert why in page
        assert not re.search(r"\bNone\b|\bnan\b", why), (claim.id, why)
        assert seen.estimate is not None
    table = latex(kept)
    assert table.count("&") - table.count(r"\&") == 3 * (1 + sum(not id.startswith("control.") for id in kept["rows"]))
    assert not re.search(r"(?<!\\)[_#%]", table)
    assert not [each for each in table if ord(each) > 126], "as every LaTeX reads it"


def test_reasons_are_given_where_rows_are_missing(kept: dict[str, Any]) -> None:
    for id in kept["rows"]:
        alone = {**kept, "rows": {id: kept["rows"][id]}}
        assert "None" not in rows(alone)[0][3], id


def test_a_failed_row_is_on_the_page() -> None:
    broken: dict[str, Any] = {
        "environment": {"cpu": "c", "cores": {"physical": 2}, "python": "3", "versions": {}},
        "settings": {"processes": 2, "apart": True, "tiny": False, "seconds": 1.0, "seed": 0},
        "rows": {"torchlens.trace": [{"error": "MemoryError: no"}], "torchlens.baukit": []},
    }
    page = markdown(broken)
    assert "failed here: MemoryError: no" in page
    assert "cannot be measured here: PyPI" in page
    assert "1 failed" in page
    assert r"failed \\" in latex(broken)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (5e-5, "5e-5"), (0.0123, "0.0123"), (14.77, "14.8"), (1927.4, "1,927"), (2e7, "2e7")]
)
def test_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_latex_reads_what_is_escaped() -> None:
    assert escaped("a_b & 5 % < `x` × µs") == r"a\_b \& 5 \% $<$ x $\times$ $\mu$s"


def test_rows_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no row 'torchlens.hook'; there are control.again, torchlens.hooks"):
        chosen(["torchlens.hook"], CLAIMS, "row")
    assert chosen(["nnbench.plain", "torchlens.hooks", "nnbench.plain"], CLAIMS, "row") == [
        "torchlens.hooks",
        "nnbench.plain",
    ]
    with pytest.raises(InputError, match=r"must be a .md file in a folder that exists"):
        main(out=tmp_path / "there" / "page.md")
    (tmp_path / "page.json").write_text("[]")
    with pytest.raises(InputError, match=r"page.json holds nothing that this program has kept"):
        main(show=tmp_path / "page.json")
    with pytest.raises(InputError, match="--latex goes with --show"):
        main(tex=True)


def test_groups_take_turns_and_what_computes_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[str, ...], int]] = []

    def pretend(group: str, some: list[str], scale: Scale, limit: float) -> dict[str, Kept]:
        calls.append((group, tuple(some), scale.seed))
        return {each: {"values": [1.0]} for each in some}

    monkeypatch.setattr("crosslens.benchmarks.published.study.run", pretend)
    wanted = ["nnsight.empty", "tdhook.intervene", "tdhook.disk", "torchlens.baukit"]
    *_, last = study(wanted, 2, TINY, kept={"rows": {"torchlens.hooks": [{"values": [3.0]}]}})
    assert [(group, seed) for group, _, seed in calls] == [
        ("nnsight", 0), ("tdhook", 0), ("computed", 0), ("nnsight", 1), ("tdhook", 1)
    ]  # fmt: skip
    assert {each: len(some) for each, some in last["rows"].items()} == {
        "torchlens.hooks": 1, "nnsight.empty": 2, "tdhook.intervene": 2, "tdhook.disk": 1, "torchlens.baukit": 0
    }  # fmt: skip


def test_a_process_that_dies_or_hangs_costs_what_it_had_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(command: list[str], **how: Any) -> Any:
        Path(command[-1]).with_suffix(".found").write_text(json.dumps({"a": {"values": [1.0]}}))
        return subprocess.run([sys.executable, "-c", "import os; os.write(2, b'oh\\nno'); os._exit(7)"], **how)

    monkeypatch.setattr("crosslens.benchmarks.published.study.subprocess.run", _once(dying))
    assert run("g", ["a", "b"], TINY) == {
        "a": {"values": [1.0]}, "b": {"error": "the process of g ended with 7: no"}
    }  # fmt: skip

    def hanging(command: list[str], **how: Any) -> Any:
        raise subprocess.TimeoutExpired(command, how["timeout"])

    monkeypatch.setattr("crosslens.benchmarks.published.study.subprocess.run", hanging)
    assert run("g", ["a"], TINY, 5.0) == {"a": {"error": "the process of g took longer than 5 s"}}


def _once(call: Callable[..., Any]) -> Callable[..., Any]:
    """What stands for `subprocess.run` once, and lets it through after that."""
    real, done = subprocess.run, []

    def either(command: list[str], **how: Any) -> Any:
        if done:
            return real(command, **how)
        done.append(1)
        return call(command, **how)

    return either


def test_a_worker_measures_in_a_process_of_its_own() -> None:
    got = run("computed", ["vllm_lens.hf"], TINY)
    assert got["vllm_lens.hf"]["values"] == [pytest.approx(2.869, abs=1e-3)]


def test_their_way_of_timing_drops_what_is_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawning takes 1.00 or 1.04 s, the task 0.01 s inside: of three differences two are positive, one is not."""
    walls = iter([1.00, 1.05, 1.04, 1.01, 1.00, 1.05] * 2)
    monkeypatch.setattr(whole_process, "_timed", lambda library, run: (next(walls), 0.01 if run else 0.0))
    seen = whole_process.by_difference(TINY)
    assert seen["values"] == [pytest.approx(5.0)] * 2, "0.05 is left of 0.05, -0.03 and 0.05; their mean is 0.0233"
    facts: Mapping[str, Any] = seen["facts"]
    assert (facts["runs"], facts["negative"], facts["zero"]) == (6, 2, 0)
    assert facts["all_ms"] == pytest.approx(70 / 3)
    assert facts["kept_ms"] == pytest.approx(50.0)


def test_the_edits_of_the_mlp_by_hand() -> None:
    model, x = mlp(4, 5, 0), torch.randn(2, 5)
    state, after, last = tdhook_intervenes(model, x, 3)
    first = model.layers[0](x)
    torch.testing.assert_close(state, first)
    torch.testing.assert_close(after, first + 3)
    torch.testing.assert_close(last, model.layers[-1](first + 3))


def test_sizes_are_of_what_is_installed() -> None:
    assert megabytes("tdhook") > megabytes("torch") > megabytes("numpy") > 1
    with pytest.raises(ValueError, match="no-such-thing is not installed"):
        megabytes("no-such-thing")


def test_hooks_see_every_module_that_runs() -> None:
    model, ids = torchlens_table._subject(TINY)
    ran: set[str] = set()
    names = {module: name for name, module in model.named_modules() if name}
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: ran.add(names[module]) if module in names else None
    )
    try:
        outputs = torchlens_table._hooked(model, ids)
    finally:
        handle.remove()
    assert set(outputs) == ran
