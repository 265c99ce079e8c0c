"""Contrasts against scipy and statsmodels, by simulation, and on inputs that have no answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from crosslens.adapters import InputError
from crosslens.tasks.intervals import noncentrality
from crosslens.tasks.statistics import COLUMNS, contrasts, contrasts_from_moments, ranking

RNG = np.random.default_rng
FIGURES = ("mean_a", "mean_b", "difference", "se", "g", "g_low", "g_high", "t", "df", "p_welch", "q_bh", "q_by")
A, B = "calm", "storm"


def two(n_a: int, n_b: int, features: int = 4, seed: int = 0, shift: float = 0.0) -> tuple[Any, list[str]]:
    values = RNG(seed).normal(size=(n_a + n_b, features))
    values[:n_a, 0] += shift
    return values, [A] * n_a + [B] * n_b


def close(found: Any, expected: Any, rel: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=float), expected, rtol=rel, atol=1e-12)


def test_unpaired_figures_are_those_of_scipy_and_of_the_definitions() -> None:
    x, labels = two(9, 14, shift=1.5)
    x[:9] *= 3
    table = contrasts(x, labels, names=range(4), permutations=50)
    assert list(table.columns) == list(COLUMNS)
    a, b = x[:9], x[9:]
    expected = stats.ttest_ind(a, b, equal_var=False)
    close(table["t"], expected.statistic)
    close(table["df"], expected.df)
    close(table["p_welch"], expected.pvalue)
    close(table["difference"], a.mean(0) - b.mean(0))
    close(table["se"], np.sqrt(a.var(0, ddof=1) / 9 + b.var(0, ddof=1) / 14))
    close(table["auroc"], stats.mannwhitneyu(a, b).statistic / (9 * 14))
    s = np.sqrt((8 * a.var(0, ddof=1) + 13 * b.var(0, ddof=1)) / 21)
    j = special.gamma(21 / 2) / (math.sqrt(21 / 2) * special.gamma(10))
    close(table["g"], j * (a.mean(0) - b.mean(0)) / s)
    for method, name in (("fdr_bh", "q_bh"), ("fdr_by", "q_by")):
        close(table[name], multipletests(table["p_welch"], method=method)[1])
    assert set(table["tested"]) == {"unpaired"}


def test_hedges_g_by_hand() -> None:
    # means 4 and 2, variances 1 and 1: d = 2; J(4) = Gamma(2) / (sqrt(2) Gamma(3/2)) = 0.797885
    table = contrasts([[3.0], [4.0], [5.0], [1.0], [2.0], [3.0]], "aaabbb", names=["x"])
    assert table["g"].item() == pytest.approx(2 * 0.7978845608)
    assert table["t"].item() == pytest.approx(2 / math.sqrt(2 / 3))
    assert table["auroc"].item() == pytest.approx(8.5 / 9)


def test_the_bounds_of_g_are_where_its_t_is_just_not_rejected() -> None:
    x, labels = two(7, 12, shift=2)
    table = contrasts(x, labels, names=range(4), permutations=0, level=0.9)
    factor = math.sqrt(1 / 7 + 1 / 12)
    t = table["difference"] / (table["difference"] / table["g"] * np.exp(_log_j(17)) * factor)
    close(stats.nct.sf(t, 17, table["g_low"] / factor), 0.05, 1e-6)
    close(stats.nct.cdf(t, 17, table["g_high"] / factor), 0.05, 1e-6)


def _log_j(df: float) -> float:
    return float(special.gammaln(df / 2) - special.gammaln((df - 1) / 2) - math.log(df / 2) / 2)


@pytest.mark.parametrize("df", [2.0, 7.5, 100.0, 1e5])
def test_noncentrality_goes_on_where_its_inverse_ends(df: float) -> None:
    near, far = (noncentrality([t, -t], df, 0.95) for t in (0.999e3, 1.001e3))
    np.testing.assert_allclose(far, np.multiply(near, 1.001 / 0.999), rtol=2e-3)
    assert far[0][0] < 1.001e3 < far[1][0]
    close(far[0][1], -far[1][0])


def test_pairs_are_tested_as_pairs_in_any_order() -> None:
    x, labels = two(11, 11)
    x[11:] += x[:11] * 2
    items = [f"story {i}" for i in range(11)] * 2
    order = RNG(3).permutation(22)
    table = contrasts(
        x[order], [labels[i] for i in order], names="wxyz", pairs=[items[i] for i in order], between=[(A, B)]
    )
    a, b = x[:11], x[11:]
    expected = stats.ttest_rel(a, b)
    close(table["t"], expected.statistic)
    close(table["df"], expected.df)
    close(table["p_welch"], expected.pvalue)
    close(table["auroc"], stats.mannwhitneyu(a, b).statistic / 121)
    average = np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2)
    r = np.array([np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)])
    j = np.exp([_log_j(20 / (1 + each**2)) for each in r])
    close(table["g"], j * (a.mean(0) - b.mean(0)) / average)
    assert set(table["tested"]) == {"paired"}
    assert set(table["n_a"]) == set(table["n_b"]) == {11}


def test_delong_by_definition() -> None:
    x, labels = two(6, 8, 3)
    x = np.round(x, 0)  # ties
    table = contrasts(x, labels, names=range(3), permutations=0)
    pairs = contrasts(x[:12], [A] * 6 + [B] * 6, names=range(3), pairs=[*range(6)] * 2, permutations=0)
    for found, n in ((table, 8), (pairs, 6)):
        for i in range(3):
            wins = np.array([[(u > v) + (u == v) / 2 for v in x[6 : 6 + n, i]] for u in x[:6, i]])
            above, below, p = wins.mean(1), wins.mean(0), wins.mean()
            variance = above.var(ddof=1) / 6 + below.var(ddof=1) / n
            if n == 6:
                variance += 2 * np.cov(above, below)[0, 1] / 6
            reach = 1.959963984540054 * math.sqrt(variance) / (p * (1 - p))
            close(found["auroc"][i], p)
            close(special.logit(found["auroc_low"][i]), special.logit(p) - reach)
            close(special.logit(found["auroc_high"][i]), special.logit(p) + reach)


def test_an_auroc_of_1_still_has_an_uncertain_bound() -> None:
    x = np.arange(12.0)[:, None]
    table = contrasts(x, [B] * 5 + [A] * 7, names=["x"], between=[(A, B)])
    assert table[["auroc", "auroc_low", "auroc_high"]].to_numpy().tolist() == [[1, pytest.approx(0.025 ** (1 / 5)), 1]]


@pytest.mark.parametrize(("n_a", "n_b", "shift", "r"), [(5, 8, 1.0, None), (20, 10, 2.0, None), (12, 12, 0.8, 0.6)])
def test_intervals_cover_and_g_is_unbiased(n_a: int, n_b: int, shift: float, r: float | None) -> None:
    rng, features = RNG(12), 2000
    a, b = rng.normal(size=(n_a, features)), rng.normal(size=(n_b, features))
    if r is not None:
        b = r * a + math.sqrt(1 - r * r) * b
    items = None if r is None else [*range(n_a)] * 2
    table = contrasts(
        np.concatenate([a + shift, b]), [A] * n_a + [B] * n_b, names=range(features), pairs=items, permutations=0
    )
    covered = (table["g_low"] <= shift) & (shift <= table["g_high"])
    # the paired interval is approximate: within 2 points of its level
    assert abs(covered.mean() - 0.95) < 4 * math.sqrt(0.95 * 0.05 / features) + (0.02 if r is not None else 0)
    assert abs(table["g"].mean() - shift) < 4 * table["g"].std() / math.sqrt(features)
    area = stats.norm.cdf(shift / math.sqrt(2))
    assert ((table["auroc_low"] <= area) & (area <= table["auroc_high"])).mean() > 0.93


# invariances

SHAPES = arrays(np.float64, (12, 3), elements=st.integers(-50, 50).map(lambda i: i / 4))
CATEGORIES = st.permutations([A] * 5 + [B] * 7)


@settings(max_examples=60)
@given(SHAPES, CATEGORIES, st.sampled_from([0.5, 3.0, 1e6, 1e-6]), st.sampled_from([0.0, -7.0, 1000.0]), st.booleans())
def test_scale_shift_swap_and_order(x: Any, labels: list[str], scale: float, shift: float, strata: bool) -> None:
    options: dict[str, Any] = {"names": range(3), "between": [(A, B)], "permutations": 60}
    block = [i % 2 for i in range(12)] if strata else None
    table = contrasts(x, labels, strata=block, **options)
    moved = contrasts(x * scale + shift * scale, labels, strata=block, **options)
    columns = ["g", "auroc", "t", "p_welch", "p_perm", "p_maxt", "n_a"]
    for name in columns:
        np.testing.assert_allclose(moved[name], table[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert list(moved["note"]) == list(table["note"])
    swapped = contrasts(x, labels, strata=block, **{**options, "between": [(B, A)]})
    for name, other in (("g", "g"), ("t", "t"), ("difference", "difference"), ("g_low", "g_high")):
        np.testing.assert_allclose(swapped[name], -table[other], rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(swapped["auroc_low"], 1 - table["auroc_high"], atol=1e-9)
    np.testing.assert_allclose(swapped["p_perm"], table["p_perm"], atol=1e-12)
    order = RNG(0).permutation(12)
    shuffled = contrasts(
        x[order], [labels[i] for i in order], strata=[block[i] for i in order] if block else None, **options
    )
    for name in (*FIGURES, "auroc", "auroc_low"):
        np.testing.assert_allclose(shuffled[name], table[name], rtol=1e-7, atol=1e-9, err_msg=name)


# inputs that have no answer, or part of one


def row(values: Any, labels: Any, **options: Any) -> pd.Series[Any]:
    table = contrasts(np.asarray(values, dtype=float)[:, None], labels, names=["x"], **options)
    assert len(table) == 1
    return table.iloc[0]


def test_a_category_that_is_seen_once() -> None:
    found = row([1, 2, 3, 9], "aaab")
    assert (found["mean_a"], found["mean_b"], found["n_b"], found["tested"]) == (2, 9, 1, "none")
    assert found["note"] == "b seen once"
    assert found[["g", "t", "p_welch", "p_perm", "p_maxt", "q_bh"]].isna().all()


def test_fewer_than_two_categories_have_no_contrast() -> None:
    assert list(contrasts(np.ones((3, 2)), "aaa", names="xy").columns) == list(COLUMNS)
    for found in (
        contrasts(np.ones((3, 2)), "aaa", names="xy", between="rest"),
        contrasts(np.ones((0, 2)), [], names="xy"),
    ):
        assert len(found) == 0
        assert len(ranking(found)) == 0


def test_figures_that_do_not_vary() -> None:
    found = row([0.1] * 6, "aaabbb")
    assert (found["g"], found["t"], found["p_welch"], found["p_perm"], found["auroc"]) == (0, 0, 1, 1, 0.5)
    assert found["note"] == "all values equal"
    found = row([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.7], "aaabbbb")
    assert (found["g"], found["g_low"], found["auroc"]) == (-np.inf, -np.inf, 0)
    assert np.isnan(found["p_welch"])
    assert found["p_perm"] == pytest.approx(1 / 35)  # only the observed of C(7, 3) is as extreme
    assert found["q_bh"] == found["p_perm"]
    assert found["note"] == "constant within categories"
    found = row([1, 2, 3, 2, 3, 4], "aaabbb", pairs=[0, 1, 2] * 2)
    assert (found["t"], found["note"]) == (-np.inf, "all differences equal")
    assert found["g"] == pytest.approx(-math.exp(_log_j(2)))


def test_missing_figures_take_no_part_and_are_told() -> None:
    x, labels = two(8, 12, 3)
    x[[1, 9, 10], 1], x[2, 2], x[:8, 0] = np.nan, np.inf, np.nan
    table = contrasts(x, labels, names="xyz", permutations=200)
    assert list(table["note"]) == [
        f"NaN in 8 of 20 examples; no figures of {A}",
        "NaN in 3 of 20 examples",
        "NaN or infinite in 1 of 20 examples",
    ]
    assert list(table["tested"]) == ["none", "unpaired", "unpaired"]
    assert list(table["n_a"]) == [0, 7, 7]
    for i in (1, 2):
        have = np.isfinite(x[:, i])
        alone = contrasts(
            x[have, i : i + 1], [label for label, ok in zip(labels, have, strict=True) if ok], names=["x"]
        )
        for name in FIGURES[:10]:
            close(table[name][i], alone[name][0])
    assert table["p_perm"][1:].notna().all()


def test_pairs_without_a_partner_are_left_out() -> None:
    x, labels = two(6, 6, 2)
    items: list[Any] = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 99, None]
    table = contrasts(x, labels, names="xy", pairs=items)
    assert list(table["note"]) == ["4 examples without a partner left out"] * 2
    close(table["t"], stats.ttest_rel(x[:4], x[6:10]).statistic)
    x[0, 1] = np.nan
    assert contrasts(x, labels, names="xy", pairs=items)["note"][1].endswith("NaN in 1 of 4 pairs")
    table = contrasts(x, labels, names="xy", pairs=range(12))
    assert table["note"][0] == "no pairs, tested unpaired"
    assert set(table["tested"]) == {"unpaired"}
    table = contrasts(x, labels, names="xy", pairs=[0, *range(1, 6), 0, *range(7, 12)])
    assert table["note"][0] == "10 examples without a partner left out; fewer than two complete pairs"


def test_against_the_rest() -> None:
    x = RNG(0).normal(size=(15, 2))
    labels = ["a"] * 4 + ["b"] * 5 + ["c"] * 6
    table = contrasts(x, labels, names="xy", between="rest", permutations=20)
    assert list(zip(table["a"], table["b"], strict=True)) == [(k, "rest") for k in "aabbcc"]
    one = contrasts(x, ["a"] * 4 + ["other"] * 11, names="xy", permutations=20)
    close(table["t"][:2], one["t"])
    paired = contrasts(x, ["a"] * 5 + ["b"] * 5 + ["c"] * 5, names="xy", between="rest", pairs=[*range(5)] * 3)
    expected = stats.ttest_rel(x[:5], (x[5:10] + x[10:]) / 2)
    close(paired["t"][:2], expected.statistic)


def test_a_crossed_design_is_told_apart() -> None:
    """The other column shifts the figure, and its labels go with this one's: only within strata is there no effect."""
    rng = RNG(6)
    tense = np.repeat(["past", "now"], 60)
    number = np.where(rng.random(120) < np.where(tense == "past", 0.8, 0.2), "one", "many")
    x = rng.normal(size=(120, 1)) + 3 * (tense == "past")[:, None]
    assert contrasts(x, number, names=["x"])["p_perm"].item() < 0.01
    found = contrasts(x, number, names=["x"], strata=tense).iloc[0]
    assert found["p_perm"] > 0.05
    assert found["g_low"] < 0 < found["g_high"]
    assert abs(found["auroc"] - 0.5) < 0.15
    x[number == "one"] += 1
    found = contrasts(x, number, names=["x"], strata=tense, between=[("one", "many")]).iloc[0]
    assert found["p_perm"] < 0.01
    assert found["g_low"] < 1 < found["g_high"]
    assert abs(found["mean_a"] - found["mean_b"]) > found["difference"]  # the plain means are confounded
    alone = contrasts(x[:60], number[:60], names=["x"], strata=["s"] * 60)
    close(alone["t"], contrasts(x[:60], number[:60], names=["x"])["t"])
    none = contrasts(x[:4], ["a", "a", "b", "b"], names=["x"], strata=[0, 0, 1, 1]).iloc[0]
    assert none["note"] == "fewer than two of each category in strata that hold both"
    close(none[["mean_a", "mean_b"]], [x[:2].mean(), x[2:4].mean()])
    some = contrasts(x[:6], [*"aabbaa"], names=["x"], strata=[0, 0, 0, 0, 1, 1]).iloc[0]
    assert some["note"] == "2 examples in strata of one category left out"
    close(some["t"], contrasts(x[:4], [*"aabb"], names=["x"])["t"][0])


def test_an_item_is_one_unit_however_many_strata_it_is_in() -> None:
    x = RNG(7).normal(size=(40, 1))  # story, tense, category
    story, tense, category = np.repeat(np.arange(10), 4), np.tile([0, 0, 1, 1], 10), ["a", "b"] * 20
    found = contrasts(x, category, names=["x"], pairs=story, strata=tense).iloc[0]
    sides = x.reshape(10, 2, 2).mean(1)
    expected = stats.ttest_rel(sides[:, 0], sides[:, 1])
    assert (found["n_a"], found["df"]) == (10, 9)
    close(found["t"], expected.statistic)
    rest = np.arange(40) != 0  # story 0 lacks one side of a stratum, so only its other stratum tells
    some: dict[str, Any] = {"pairs": story[rest], "strata": tense[rest], "between": [("a", "b")]}
    found = contrasts(x[rest], np.array(category)[rest], names=["x"], **some).iloc[0]
    sides[0] = x[2:4, 0]
    close(found["t"], stats.ttest_rel(sides[:, 0], sides[:, 1]).statistic)
    close(found["mean_a"], sides[:, 0].mean())
    assert found["note"] == "1 examples without a partner left out"
    with pytest.raises(InputError, match="pair 0 occurs twice in category 'a'"):
        contrasts(x, category, names=["x"], pairs=story)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"names": "xyz"}, "3 names for values of shape"),
        ({"categories": "ab"}, "2 categories for values"),
        ({"categories": ["a", "b", None, "b"]}, "example 2 has no category"),
        ({"strata": [1, None, 1, 1]}, "example 1 has no stratum"),
        ({"between": [("a", "c")]}, "between names category 'c'; there are 'a', 'b'"),
        ({"between": [("a", "a")]}, "contrasts category 'a' with itself"),
        ({"between": "all"}, "between is 'all'"),
        ({"categories": ["a", "rest", "a", "rest"], "between": "rest"}, "a category is called 'rest'"),
        ({"level": 95}, "level is 95"),
        ({"permutations": -1}, "permutations is -1"),
        ({"values": np.ones(4)}, "values are \\(example, feature\\)"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], text: str) -> None:
    given_ = {"values": np.ones((4, 2)), "categories": "abab", "names": "xy", **options}
    with pytest.raises(InputError, match=text):
        contrasts(given_.pop("values"), given_.pop("categories"), **given_)


# moments, ranking


@pytest.mark.parametrize("between", [None, "rest"])
def test_moments_give_what_the_examples_give(between: Any) -> None:
    rng = RNG(13)
    x, labels = rng.normal(size=(30, 4)), np.array(["a"] * 7 + ["b"] * 12 + ["c"] * 11)
    x[3, 1], x[:, 2], x[labels == "a", 3] = np.nan, 2.0, 7.0
    parts = [x[labels == k] for k in "abc"]
    n = [np.isfinite(part).sum(0) for part in parts]
    moments = n, [np.nanmean(part, 0) for part in parts], [np.nanvar(part, 0, ddof=1) for part in parts]
    found = contrasts_from_moments(*moments, "abc", names="wxyz", between=between)
    expected = contrasts(x, labels, names="wxyz", between=between, permutations=0)
    for name in ("n_a", "n_b", *FIGURES):
        np.testing.assert_allclose(
            found[name].astype(float), expected[name].astype(float), rtol=1e-9, atol=1e-12, err_msg=name
        )
    assert found[["auroc", "p_perm", "p_maxt"]].isna().all(axis=None)
    assert list(found["tested"]) == list(expected["tested"])


def test_moments_that_are_too_few_or_wrong() -> None:
    table = contrasts_from_moments([5, 1], [[1.0, 2.0]] * 2, [[1.0, 0.0], [np.nan, np.nan]], "ab", names="xy")
    assert list(table["note"]) == ["from moments; b seen less than twice"] * 2
    assert table["t"].isna().all()
    assert list(table["mean_b"]) == [1.0, 2.0]
    for n, var, labels, text in (
        ([5, 1], [[1.0], [1.0]], "ab", "shapes"),
        ([5, 5], [[1.0, -1.0]] * 2, "ab", "negative"),
        ([5, 5], [[1.0, 1.0]] * 2, "aa", "more than one row"),
    ):
        with pytest.raises(InputError, match=text):
            contrasts_from_moments(n, [[1.0, 2.0]] * 2, var, labels, names="xy")


def test_ranking_prefers_what_is_certain() -> None:
    rng = RNG(16)
    x = rng.normal(size=(60, 4))
    labels = np.array(["a"] * 30 + ["b"] * 30)
    x[labels == "a", 1] += 1.5  # plain, in many examples
    x[:, 2] = np.where(labels == "a", 0.0, 0.5)  # constant within
    x[np.r_[3:30, 33:60], 3] = np.nan  # huge, in three examples of each
    x[:3, 3], x[30:33, 3] = [5.0, 6.0, 7.2], [1.0, 2.4, 3.0]
    x[:, 0][labels == "a"] = np.nan
    ranked = ranking(contrasts(x, labels, names=["none", "plain", "constant", "few"], permutations=50))
    assert list(ranked["feature"]) == ["constant", "plain", "few", "none"]
    assert list(ranked["rank"]) == [1, 2, 3, 4]
    few, plain = (ranked[ranked["feature"] == name].iloc[0] for name in ("few", "plain"))
    assert abs(few["g"]) > abs(plain["g"])
    assert plain["bound"] == plain["g_low"]
    three = ranking(contrasts(x[:, 1:2], [*"abc"] * 20, names=[("site", "kpi")], permutations=0))
    assert len(three) == 1
    assert three["feature"].item() == ("site", "kpi")
