"""Intervals of ratios: by hand, by their laws, and on simulated runs whose truth is known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crosslens.benchmarks.coverage import MACHINES, TRUE, Machine, measure, page, percentile, simulate
from crosslens.benchmarks.estimate import Estimate, best, level, median_ratio, over_tasks, quotient

RATIOS = st.floats(0.5, 2.0)
SAMPLES = st.lists(RATIOS, min_size=1, max_size=9).map(np.array)


def test_several_processes_have_students_interval_of_their_medians() -> None:
    processes = [np.array([1.0, 1.1, 5.0]), np.array([1.2, 1.2, 0.1]), np.array([1.3])]
    logs = np.log([1.1, 1.2, 1.3])
    interval = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    found = median_ratio(processes)
    assert found.value == pytest.approx(math.exp(logs.mean()), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-12)


@pytest.mark.parametrize(("samples", "rank", "covers"), [(6, 1, 0.96875), (12, 3, 0.961426), (20, 6, 0.958611)])
def test_one_process_has_the_interval_of_the_sign_test(samples: int, rank: int, covers: float) -> None:
    """Ranks and coverage as in tables of the sign test (Conover, Practical Nonparametric Statistics)."""
    ratios = np.random.default_rng(0).permutation(np.linspace(1.0, 2.0, samples))
    found, ordered = median_ratio([ratios]), np.sort(ratios)
    assert (found.low, found.high) == pytest.approx((ordered[rank - 1], ordered[-rank]), rel=1e-12)
    assert level(samples) == pytest.approx(covers, abs=1e-6)


def test_too_few_samples_give_their_range_and_say_what_it_covers() -> None:
    found = median_ratio([np.array([1.0, 1.3, 1.1])])
    assert (found.low, found.value, found.high) == pytest.approx((1.0, 1.1, 1.3))
    assert (level(3), level(1)) == (0.75, 0.0)


@given(SAMPLES)
def test_the_interval_of_one_process_lies_within_its_samples(ratios: np.ndarray) -> None:
    found = median_ratio([ratios])
    slack = 1e-12
    assert min(ratios) - slack <= found.low <= found.value <= found.high <= max(ratios) + slack


@given(st.lists(SAMPLES, min_size=1, max_size=5), st.floats(0.01, 100.0))
def test_a_unit_scales_the_estimate_and_its_inverse_inverts_it(groups: list[np.ndarray], unit: float) -> None:
    """On logarithms: it does not matter which of two is called the baseline, or in what unit times are."""
    found = median_ratio(groups)
    scaled, inverse = median_ratio([g * unit for g in groups]), median_ratio([1 / g for g in groups])
    assert (scaled.low, scaled.value, scaled.high) == pytest.approx(
        (found.low * unit, found.value * unit, found.high * unit), rel=1e-6
    )
    assert (inverse.high, inverse.value, inverse.low) == pytest.approx(
        (1 / found.low, 1 / found.value, 1 / found.high), rel=1e-6
    )


@given(st.lists(SAMPLES, min_size=1, max_size=4), st.lists(SAMPLES, min_size=1, max_size=4))
def test_a_quotient_is_the_quotient_and_turns_around(above: list[np.ndarray], below: list[np.ndarray]) -> None:
    found, turned = quotient(above, below), quotient(below, above)
    assert found.value == pytest.approx(median_ratio(above).value / median_ratio(below).value, rel=1e-9)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.high >= found.value * (1 - 1e-9)
    assert (turned.low, turned.high) == pytest.approx((1 / found.high, 1 / found.low), rel=1e-6)


def test_a_quotient_of_several_processes_is_welchs() -> None:
    above, below = [1.1, 1.2, 1.15], [1.0, 1.3]
    test = stats.ttest_ind(np.log(above), np.log(below), equal_var=False).confidence_interval(0.95)
    found = quotient([np.array([a]) for a in above], [np.array([b]) for b in below])
    assert (found.low, found.high) == pytest.approx((math.exp(test.low), math.exp(test.high)), rel=1e-12)


def test_a_quotient_of_one_process_each_joins_their_intervals_by_hand() -> None:
    above, below = np.linspace(1.0, 1.2, 13), np.linspace(0.9, 1.4, 13)
    a, b, found = median_ratio([above]), median_ratio([below]), quotient([above], [below])
    down = math.hypot(math.log(a.value / a.low), math.log(b.high / b.value))
    up = math.hypot(math.log(a.high / a.value), math.log(b.value / b.low))
    assert found.low == pytest.approx(a.value / b.value * math.exp(-down), rel=1e-12)
    assert found.high == pytest.approx(a.value / b.value * math.exp(up), rel=1e-12)


def test_processes_that_are_alike_to_the_last_digit_have_an_interval_of_no_width() -> None:
    same = [np.array([1.5])] * 3
    for found in (median_ratio(same), over_tasks([1.5] * 6), over_tasks([1.5])):
        assert (found.low, found.value, found.high) == pytest.approx((1.5, 1.5, 1.5))
    apart = quotient(same, [np.array([1.2])] * 2)
    assert (apart.low, apart.high) == pytest.approx((1.25, 1.25))


@given(st.lists(RATIOS, min_size=2, max_size=14))
def test_the_mean_over_tasks_is_geometric_whatever_their_order(ratios: list[float]) -> None:
    found = over_tasks(ratios)
    assert found.value == pytest.approx(math.prod(ratios) ** (1 / len(ratios)), rel=1e-9)
    assert found.low <= found.value * (1 + 1e-9)
    assert found.high >= found.value * (1 - 1e-9)
    assert over_tasks(ratios) == found, "the same ratios give the same interval"


def test_one_costly_task_pulls_the_interval_to_its_side() -> None:
    found = over_tasks([1.0, 1.01, 1.02, 1.0, 1.01, 1.03, 1.02, 4.0])
    assert math.log(found.high / found.value) > 1.5 * math.log(found.value / found.low)


def test_the_best_is_the_one_below_all_others() -> None:
    low, middle, high = Estimate(1.0, 0.9, 1.1), Estimate(1.15, 1.05, 1.3), Estimate(2.0, 1.9, 2.2)
    assert best([high, low]) == 1
    assert best([high, middle, low]) is None, "two of them overlap"
    assert best([None, low, high, None]) == 1
    assert best([None, low]) is None
    assert best([]) is None
    assert best([Estimate(1.0, 0.9, 1.1), Estimate(1.2, 1.1, 1.3)]) is None, "they touch"


# ---- simulated runs with a known ratio


def covered(estimate: Callable[[np.random.Generator], Estimate], true: float, runs: int = 400) -> float:
    draw = np.random.default_rng(5)
    return sum(estimate(draw).covers(true) for _ in range(runs)) / runs


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("machine", [MACHINES["processes differ by 2 %"], MACHINES["processes are alike"]])
def test_intervals_over_processes_cover_at_their_nominal_rate(machine: Machine, count: int) -> None:
    share = covered(lambda draw: median_ratio(simulate(draw, count, machine)), TRUE)
    assert 0.917 <= share <= 0.983  # three standard errors about 95 %


def test_one_process_covers_itself_and_not_what_differs_between_processes() -> None:
    alike, differ = MACHINES["processes are alike"], MACHINES["processes differ by 2 %"]
    assert covered(lambda draw: median_ratio(simulate(draw, 1, alike)), TRUE) >= 0.917
    assert covered(lambda draw: median_ratio(simulate(draw, 1, differ)), TRUE) < 0.75


def test_the_percentile_bootstrap_is_too_narrow_for_few_processes() -> None:
    machine = MACHINES["processes differ by 2 %"]
    share = covered(lambda draw: percentile(simulate(draw, 3, machine), draw), TRUE, runs=150)
    assert share < 0.917


def test_a_backend_under_two_names_is_alike_at_the_nominal_rate_and_a_difference_is_seen() -> None:
    machine = MACHINES["processes differ by 2 %"]
    alike = covered(lambda draw: quotient(simulate(draw, 5, machine), simulate(draw, 5, machine)), 1.0)
    assert 0.917 <= alike <= 1.0
    twice = covered(lambda draw: quotient(simulate(draw, 5, machine), simulate(draw, 5, machine, ratio=1.25)), 1.0, 100)
    assert twice < 0.1


def test_the_mean_over_tasks_covers_the_mean_of_all_such_tasks() -> None:
    share = covered(lambda draw: over_tasks([float(v) for v in np.exp(draw.normal(0.1, 0.3, 10))]), math.exp(0.1), 200)
    assert 0.9 <= share <= 0.99


def test_a_simulated_ratio_is_the_true_one_and_its_noise_is_as_said() -> None:
    draw = np.random.default_rng(0)
    quiet = simulate(draw, 3, Machine(processes=0.0, samples=0.0, tail=0.0, drift=0.0))
    assert np.allclose(quiet, TRUE, rtol=1e-12)
    medians = [np.median(np.log(p)) for p in simulate(draw, 2000, Machine(processes=0.1))]
    assert np.mean(medians) == pytest.approx(math.log(TRUE), abs=0.01)
    assert np.std(medians) == pytest.approx(0.1, rel=0.1)


def test_the_page_is_a_function_of_what_was_measured(tmp_path: Path) -> None:
    measured = measure(8, 0, counts=(1, 3), tasks=(2,))
    assert page(json.loads(json.dumps(measured))) == page(measured)
    assert page(measured) == page(measure(8, 0, counts=(1, 3), tasks=(2,)))
    assert page(measured).count("\n| processes") == 1 + 2 * 2
    assert "| 2 |" in page(measured)


def test_the_program_refuses_what_it_cannot_do() -> None:
    command = [sys.executable, "-m", "crosslens.benchmarks.coverage"]
    for arguments, says in (
        (["--runs", "0"], "greater than or equal to 1"),
        (["--out", "/no/such/x.md"], "a folder that exists"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, says in done.stderr) == (2, True)
