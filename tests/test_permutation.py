"""The permutation engine, by definition and under the null; and the test over many categories that rests on it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.oneway import anova_oneway

from crosslens.adapters import InputError
from crosslens.tasks.omnibus import omnibus
from crosslens.tasks.permutation import effect, relabellings, t_values
from crosslens.tasks.statistics import contrasts

RNG = np.random.default_rng
A, B = "calm", "storm"


def two(n_a: int, n_b: int, features: int = 4, seed: int = 0, shift: float = 0.0) -> tuple[Any, list[str]]:
    values = RNG(seed).normal(size=(n_a + n_b, features))
    values[:n_a, 0] += shift
    return values, [A] * n_a + [B] * n_b


def close(found: Any, expected: Any, rel: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=rel, atol=1e-12)


def designs() -> list[tuple[str, Any, Any]]:
    rng = RNG(5)
    first = rng.random(24) < 0.4
    halves = np.repeat([0, 1, 2], 8)
    return [
        ("one", first, np.zeros(24, int)),
        ("strata", first, halves),
        ("pairs", np.arange(24) % 2 == 0, np.arange(24) // 2),
    ]


@pytest.mark.parametrize(("first", "block"), [each[1:] for each in designs()], ids=[each[0] for each in designs()])
def test_the_effect_is_least_squares_with_hc2_and_satterthwaite(first: Any, block: Any) -> None:
    x = RNG(1).normal(size=(24, 3)) * np.where(first, 3, 1)[:, None] + block[:, None]
    levels = np.eye(block.max() + 1)[block]
    model = np.column_stack([levels, first])
    q = np.linalg.qr(model)[0]
    rest = np.eye(24) - q @ q.T
    residual, free = rest @ x, np.diag(rest)
    c = np.linalg.pinv(model)[-1]
    weights = c**2 / free
    found = effect(x, first, block)
    close(found.difference, c @ x)
    close(found.se, np.sqrt(weights @ residual**2))
    close(found.sd, np.sqrt((residual**2).sum(0) / (24 - model.shape[1])))
    close(found.level, levels @ np.linalg.lstsq(model, x, rcond=None)[0][:-1])
    for i in range(3):
        scaled = residual[:, i] ** 2 / free
        omega = np.where(first, scaled[first].mean(), scaled[~first].mean())
        product = rest @ np.diag(weights) @ rest * omega
        close(found.df[i], np.trace(product) ** 2 / np.trace(product @ product))
    labels = relabellings(first, block, 30, RNG(0))
    assert (labels[0] == first).all()
    for row in labels:
        assert (
            np.bincount(block[row], minlength=len(levels[0])) == np.bincount(block[first], minlength=len(levels[0]))
        ).all()
    each = [effect(x, row, block) for row in labels]
    close(t_values(x, labels, block), [fit.difference / fit.se for fit in each])


def test_all_relabellings_where_there_are_few_make_p_exact() -> None:
    x, labels = two(4, 5, 2, shift=2)
    table = contrasts(x, labels, names="xy", permutations=125)  # C(9, 4) = 126
    for i in range(2):
        t = []
        for chosen in itertools.combinations(range(9), 4):
            one = np.isin(np.arange(9), chosen)
            t.append(abs(stats.ttest_ind(x[one, i], x[~one, i], equal_var=False).statistic))
        mine = abs(stats.ttest_ind(x[:4, i], x[4:, i], equal_var=False).statistic)
        close(table["p_perm"][i], np.mean(np.array(t) >= mine * (1 - 1e-9)))
    flips = contrasts(x[:8], [A] * 4 + [B] * 4, names="xy", pairs=[*range(4)] * 2, permutations=15)  # 2^4 = 16
    signs = np.array(list(itertools.product([1, -1], repeat=4)))
    difference = x[:4] - x[4:8]
    t = np.abs([stats.ttest_1samp(s[:, None] * difference, 0).statistic for s in signs])
    close(flips["p_perm"], (t >= t[0] * (1 - 1e-9)).mean(0))


def test_all_relabellings_are_there_once_and_the_observed_is_first() -> None:
    first, block = np.array([False, True, True, False, True, False, True]), np.array([1, 0, 1, 0, 1, 0, 0])
    labels = relabellings(first, block, 17, RNG(0))  # C(4, 2) C(3, 2) = 18
    assert (labels[0] == first).all()
    assert len({tuple(each) for each in labels.tolist()}) == 18
    assert {(each[block == 0].sum(), each[block == 1].sum()) for each in labels} == {(2, 2)}
    assert len(relabellings(first, block, 16, RNG(0))) == 17


def test_figures_that_are_constant_within_categories_have_an_infinite_t() -> None:
    levels = RNG(1).normal(size=(2, 200)) * 10.0 ** RNG(2).integers(-9, 9, 200)
    first = np.arange(11) < 4
    t = t_values(np.where(first[:, None], *levels), np.stack([first, ~first]), np.zeros(11, int))
    np.testing.assert_array_equal(t[0], np.copysign(np.inf, levels[0] - levels[1]))
    np.testing.assert_array_equal(t[1], -t[0])


@pytest.mark.parametrize("paired", [False, True])
def test_max_t_against_a_naive_loop(paired: bool) -> None:
    x, labels = two(10, 10, 6, seed=2, shift=1.5)
    x[:, 1] = 0.7 * x[:, 0] + x[:, 1]
    x[[3, 13], 2] = np.nan
    table = contrasts(x, labels, names=range(6), pairs=[*range(10)] * 2 if paired else None, permutations=300, seed=4)
    first = np.arange(20) < 10
    block = np.tile(np.arange(10), 2) if paired else np.zeros(20, int)
    drawn = relabellings(first, block, 300, RNG(4))
    t = np.array([[_naive(x[:, i], row, paired) for i in range(6)] for row in drawn])
    close(table["p_perm"], (t >= t[0] * (1 - 1e-9)).mean(0))
    adjusted, left, last = np.empty(6), list(np.argsort(-t[0])), 0.0
    while left:  # the largest, against the maximum of those not yet judged
        last = max(last, (t[:, left].max(1) >= t[0, left[0]] * (1 - 1e-9)).mean())
        adjusted[left.pop(0)] = last
    close(table["p_maxt"], adjusted)
    assert (table["p_maxt"] >= table["p_perm"]).all()


def _naive(x: Any, first: Any, paired: bool) -> float:
    if paired:
        difference = (x[:10] - x[10:]) * np.where(first[:10], 1, -1)
        return abs(stats.ttest_1samp(difference[~np.isnan(difference)], 0).statistic)
    have = ~np.isnan(x)
    return abs(stats.ttest_ind(x[first & have], x[~first & have], equal_var=False).statistic)


def binomial(hits: int, trials: int, p: float) -> None:
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], trials, p)
    assert low <= hits <= high, f"{hits} of {trials}, expected {p * trials:.0f}, within {low:.0f} to {high:.0f}"


@pytest.mark.parametrize("design", ["unpaired", "paired", "strata"])
def test_p_values_are_uniform_under_the_null(design: str) -> None:
    """500 independent features are as many experiments; skewed, so that p_perm must not lean on normality."""
    x = RNG(8).exponential(size=(24, 500))
    options: dict[str, Any] = {
        "unpaired": {},
        "paired": {"pairs": [*range(12)] * 2},
        "strata": {"strata": [*"xxyyyy"] * 4},
    }[design]
    if design == "paired":
        x += np.tile(RNG(9).normal(size=(12, 500)) * 3, (2, 1))
    if design == "strata":
        x += 5 * (np.arange(24) % 6 < 2)[:, None]
    table = contrasts(x, [A] * 12 + [B] * 12, names=range(500), permutations=399, **options)
    for level in (0.05, 0.5):
        binomial(int((table["p_perm"] <= level).sum()), 500, level)


def test_max_t_holds_the_family_wise_error_of_dependent_figures() -> None:
    rng, hits = RNG(11), 0
    for _ in range(200):
        shared = rng.normal(size=(20, 1))
        table = contrasts(shared + rng.normal(size=(20, 8)), [A] * 8 + [B] * 12, names=range(8), permutations=99)
        hits += int(table["p_maxt"].min() <= 0.1)
    binomial(hits, 200, 0.1)


# over many categories


def test_omnibus_is_welchs_analysis_of_variance() -> None:
    rng = RNG(14)
    x, labels = rng.normal(size=(40, 4)), np.array([*"abcd"] * 10)
    x[labels == "b", 0] += 2
    x[labels == "c", 1] *= 4
    x[5, 2], x[:, 3] = np.nan, 1.0
    table = omnibus(x, labels, names="wxyz", permutations=199)
    for i in range(3):
        have = np.isfinite(x[:, i])
        expected = anova_oneway(x[have, i], labels[have], use_var="unequal")
        close(table[["f", "df1", "df2", "p_welch"]].iloc[i], [expected.statistic, *expected.df, expected.pvalue])
    assert table["p_perm"][0] == table["p_maxt"][0] == 1 / 200
    assert list(table.iloc[3][["f", "p_welch", "p_perm"]]) == [0, 1, 1]
    assert table["note"][2] == "1 examples left out"
    # of two categories it is the square of Welch's t, and has the same p
    pair = omnibus(x[:, :2], np.where(labels < "c", "ab", "cd"), names="wx", permutations=0)
    single = contrasts(x[:, :2], np.where(labels < "c", "ab", "cd"), names="wx", permutations=0)
    close(pair["f"], single["t"] ** 2)
    close(pair["p_welch"], single["p_welch"])
    f = stats.f_oneway(*[x[labels == k, 0] for k in "abcd"]).statistic
    close(table["omega2"][0], 3 * (f - 1) / (3 * (f - 1) + 40))


@pytest.mark.parametrize("how", ["pairs", "strata"])
def test_omnibus_within_blocks(how: str) -> None:
    rng = RNG(15)
    x = rng.normal(size=(45, 300)) + 5 * np.repeat(rng.normal(size=(15, 300)), 3, axis=0)
    labels = [*"abc"] * 15
    blocks = np.repeat(np.arange(15), 3)
    null = omnibus(x, labels, names=range(300), permutations=199, **{how: blocks})
    binomial(int((null["p_perm"] <= 0.1).sum()), 300, 0.1)
    assert set(null["tested"]) == {"blocked"}
    x[::3] += 1.5
    assert (omnibus(x, labels, names=range(300), permutations=199, **{how: blocks})["p_perm"] <= 0.05).mean() > 0.9
    assert (omnibus(x, labels, names=range(300), permutations=0)["p_welch"] <= 0.05).mean() < 0.5


def test_omnibus_has_its_limits() -> None:
    assert len(omnibus(np.ones((3, 1)), "aaa", names="x")) == 0
    table = omnibus([[1.0], [2.0], [3.0]], "aab", names="x")
    assert (table["tested"].item(), table["categories"].item()) == ("none", 1)
    x = RNG(17).normal(size=(21, 1))
    table = omnibus(x, [*"abcd"] * 5 + ["once"], names="x", permutations=19)
    expected = anova_oneway(x[:20, 0], np.array([*"abcd"] * 5), use_var="unequal")
    close(table[["f", "df1", "p_welch", "n"]].iloc[0], [expected.statistic, 3, expected.pvalue, 20])
    assert table["omega2"].item() == omnibus(x[:20], [*"abcd"] * 5, names="x", permutations=0)["omega2"].item()
    assert table["note"].item() == "1 examples left out"
    with pytest.raises(InputError, match="pairs or strata"):
        omnibus(np.ones((2, 1)), "ab", names="x", pairs=[1, 1], strata=[1, 1])
