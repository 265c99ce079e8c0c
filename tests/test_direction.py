"""The tests of direction and distribution: by definition, under the null, and on differences with no scalar trace."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from crosslens.adapters import InputError
from crosslens.tasks.direction import _Plan, direction_test, direction_tests
from crosslens.tasks.statistics import contrasts

RNG = np.random.default_rng
TESTS = ("p_auroc", "p_mmd", "p_covariance")


def rotated(n: int, d: int, seed: int, planes: int = 12) -> tuple[Any, list[str]]:
    """Every coordinate is standard normal in both categories; some pairs of them correlate, with opposite signs."""
    x = RNG(seed).normal(size=(n, d))
    sign = np.where(np.arange(n) % 2, -1, 1)[:, None]
    first, second = x[:, : 2 * planes : 2], x[:, 1 : 2 * planes : 2]
    x[:, 1 : 2 * planes : 2] = sign * 0.9 * first + np.sqrt(1 - 0.81) * second
    return x, ["a", "b"] * (n // 2)


def standardised(x: Any) -> Any:
    return (x - x.mean(0)) / x.std(0)


def held_out(x: Any, y: Any, units: Any, folds: int, seed: int) -> tuple[float, list[tuple[Any, Any]]]:
    """AUROC by the definition, and the scores and labels of each fold. y: 1 for the first category."""
    wins, chances, parts = 0.0, 0, []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(x, 1 - y, units):
        direction = x[train][y[train] == 1].mean(0) - x[train][y[train] == 0].mean(0)
        size = int(y[test].sum() * (1 - y[test]).sum())
        wins += roc_auc_score(y[test], x[test] @ direction) * size
        chances += size
        parts.append((x[test] @ direction, y[test]))
    return wins / chances, parts


def test_auroc_is_that_of_directions_from_the_other_folds() -> None:
    x = RNG(0).normal(size=(41, 9)) * np.arange(1, 10)
    y = (np.arange(41) < 17).astype(int)
    x[y == 1, 2:4] += 2
    expected, parts = held_out(standardised(x), y, np.arange(41), 4, 7)
    found = direction_test(x, np.where(y, "yes", "no"), folds=4, seed=7, permutations=0)
    assert found.auroc == pytest.approx(expected)
    assert (found.n, found.folds) == (41, 4)
    above, below = [], []
    for score, label in parts:
        better = score[label == 1][:, None] > score[label == 0]
        above.append((better - expected).sum(1))
        below.append((better - expected).sum(0))
    total = sum(len(u) * len(v) for u, v in zip(above, below, strict=True))
    se = np.sqrt(sum((part**2).sum() for part in above + below) * 41 / 40) / total
    reach = stats.norm.ppf(0.975) * se / (expected * (1 - expected))
    assert found.auroc_low == pytest.approx(special.expit(special.logit(expected) - reach))
    assert found.auroc_high == pytest.approx(special.expit(special.logit(expected) + reach))
    assert np.isnan([found.p_auroc, found.p_mmd, found.p_covariance, found.p]).all()


def test_groups_of_several_categories_are_compared_within_themselves() -> None:
    rng = RNG(1)
    story = np.arange(40) // 2
    x = rng.normal(size=(40, 6)) + 4 * rng.normal(size=(20, 6))[story]
    y = np.tile([1, 0], 20)
    x[y == 1, 0] += 2.5
    z = standardised(x)
    z -= np.array([z[story == each].mean(0) for each in range(20)])[story]
    expected, _ = held_out(z, y, story, 5, 0)
    found = direction_test(x, y, groups=story)
    assert found.auroc == pytest.approx(expected)
    assert found.p_auroc < 0.05
    assert direction_test(x, y, permutations=0).auroc < found.auroc


def naive_mmd(kernel: Any, y: Any, units: Any) -> float:
    def mean(one: Any, two: Any) -> float:
        pairs = [(i, j) for i in one for j in two if units[i] != units[j]]
        return float(np.mean([kernel[i, j] for i, j in pairs]))

    a, b = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


@pytest.mark.parametrize("grouped", [False, True])
def test_distances_by_definition(grouped: bool) -> None:
    x, y = RNG(2).normal(size=(16, 5)) * [1, 5, 1, 1, 9], np.tile([1, 0], 8)
    units = np.arange(16) // 2 if grouped else np.arange(16)
    z = standardised(x)
    squared = ((z[:, None] - z) ** 2).sum(-1)
    kernel = np.exp(-squared / (2 * np.median(squared[np.triu_indices(16, 1)])))
    found = direction_test(x, y, groups=units if grouped else None, permutations=10)
    assert found.mmd == pytest.approx(naive_mmd(kernel, y, units))
    assert found.covariance == pytest.approx(naive_mmd((z @ z.T) ** 2, y, units))


def test_more_than_two_categories_are_the_mean_over_pairs() -> None:
    x, labels = RNG(3).normal(size=(30, 4)), np.array([*"abc"] * 10)
    x[labels == "b", 1] += 3
    x[labels == "c", 0] += 3
    found = direction_test(x, labels, permutations=99)
    z, units = standardised(x), np.arange(30)
    splits = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(z, [*range(3)] * 10, units))
    areas, distances = [], []
    for a, b in itertools.combinations("abc", 2):
        wins, chances = 0.0, 0
        for train, test in splits:
            means = [z[train][labels[train] == k].mean(0) for k in (a, b)]
            score = z[test] @ (means[0] - means[1])
            better = score[labels[test] == a][:, None] > score[labels[test] == b]
            wins, chances = wins + better.sum(), chances + better.size
        areas.append(wins / chances)
        both = np.isin(labels, [a, b])
        distances.append(naive_mmd(((z @ z.T) ** 2)[np.ix_(both, both)], labels[both] == a, np.arange(both.sum())))
    assert found.auroc == pytest.approx(np.mean(areas))
    assert found.covariance == pytest.approx(np.mean(distances))
    assert np.isnan(found.auroc_low)
    assert found.p_auroc == 0.01


def test_a_rotation_leaves_no_scalar_trace_and_is_found() -> None:
    x, labels = rotated(200, 96, seed=5)
    found = direction_test(x, labels)
    assert found.p_covariance == 1 / 201
    assert found.p < 0.05
    norms = {"mean": x.mean(1), "sd": x.std(1), "norm": np.linalg.norm(x, axis=1), "largest": np.abs(x).max(1)}
    values = np.column_stack([*norms.values(), x])
    scalar = contrasts(values, labels, names=[*norms, *range(96)], permutations=200)
    assert scalar["p_maxt"].min() > 0.05
    assert scalar["q_by"].min() > 0.05


def test_a_small_shift_in_many_coordinates_is_found_by_direction() -> None:
    x = RNG(0).normal(size=(120, 800))
    labels = ["a", "b"] * 60
    x[::2] += 0.12 * np.sign(RNG(6).normal(size=800))
    found = direction_test(x, labels)
    assert found.p_auroc == found.p_mmd == 1 / 201
    assert found.auroc_low > 0.5
    assert found.p_covariance > 0.05
    assert contrasts(x, labels, names=range(800), permutations=200)["p_maxt"].min() > 0.05


@pytest.mark.parametrize("design", ["examples", "uneven", "pairs", "blocks", "three"])
def test_p_values_are_uniform_under_the_null(design: str) -> None:
    n, repeats, rng = 24, 250, RNG(20)
    labels, groups = np.array(["a", "b"] * 12), None
    if design == "uneven":
        labels = np.array(["a"] * 6 + ["b"] * 18)
    if design == "pairs":
        groups = np.arange(n) // 2
    if design == "blocks":
        groups = np.arange(n) // 2
        labels = np.repeat(["a", "b", "b"] * 4, 2)
    if design == "three":
        labels = np.array([*"abc"] * 8)
    sites = {}
    for site in range(repeats):
        x = rng.exponential(size=(n, 6))
        sites[site] = x if groups is None else x + 2 * rng.normal(size=(12, 6))[groups]
    found = direction_tests(sites, labels, groups=groups, permutations=99, folds=3)
    for name in TESTS:
        for level in (0.05, 0.3):
            hits = int((found[name] <= level).sum())
            low, high = stats.binom.ppf([1e-4, 1 - 1e-4], repeats, level)
            assert low <= hits <= high, (name, level, hits)
    assert (found["p"] <= 0.05).mean() < 0.1


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(15), 2)])
def test_folds_are_as_balanced_under_every_relabelling_as_under_the_first(groups: Any) -> None:
    labels = np.repeat([*"abbab" * 3], 2)
    plan = _Plan.of(labels, groups, permutations=40, folds=3, seed=0)
    counts = [np.bincount(2 * fold + label, minlength=6) for fold, label in zip(plan.fold, plan.labels, strict=True)]
    assert (np.array(counts) == counts[0]).all()
    assert len(np.unique(plan.labels, axis=0)) > 35
    if groups is not None:
        assert (plan.fold[:, ::2] == plan.fold[:, 1::2]).all()
        assert (plan.labels[:, ::2] == plan.labels[:, 1::2]).all()


def test_many_sites_are_the_single_tests_with_their_p_adjusted() -> None:
    x, labels = rotated(60, 12, seed=8, planes=5)
    rng = RNG(9)
    sites = {
        "rotated": x,
        "null": rng.normal(size=(60, 7)),
        "flat": np.ones((60, 3)),
        "shifted": rng.normal(size=(60, 5)),
    }
    sites["shifted"][::2] += 0.8
    table = direction_tests(sites, labels, permutations=80, seed=3).set_index("site")
    for site, given_ in sites.items():
        alone = direction_test(given_, labels, permutations=80, seed=3)
        for name, figure in vars(alone).items():
            assert table.loc[site, name] == figure or np.isnan(figure), (site, name)
        assert table.loc[site, "p"] == alone.p
    for name in ("auroc", "mmd", "covariance"):
        assert (table[f"p_maxt_{name}"] >= table[f"p_{name}"]).all()
    assert table.loc["shifted", "p_maxt_auroc"] == table.loc["shifted", "p_maxt_mmd"] == 1 / 81
    assert table.loc["rotated", "p_maxt_covariance"] == 1 / 81
    assert table.loc["null", "p_maxt_auroc"] > 0.05
    assert list(table.loc["flat", ["auroc", "mmd", "p_auroc", "p_mmd", "p"]]) == [0.5, 0, 1, 1, 1]
    assert table.loc["flat", "note"] == "all vectors are equal"
    assert len(direction_tests({}, labels)) == 0


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]), st.booleans())
def test_scale_shift_and_permuted_coordinates_do_not_matter(seed: int, scale: float, grouped: bool) -> None:
    rng = RNG(seed)
    x, labels = rng.normal(size=(20, 5)), ["a", "b"] * 10
    groups = [i // 2 for i in range(20)] if grouped else None
    before = direction_test(x, labels, groups=groups, permutations=30)
    moved = x[:, rng.permutation(5)] * scale * np.array([1, 2, -3, 4, 5]) + scale * 10
    after = direction_test(moved, ["b" if each == "a" else "a" for each in labels], groups=groups, permutations=30)
    assert vars(after) == pytest.approx(vars(before), nan_ok=True)


def test_what_cannot_be_held_out_or_paired() -> None:
    x = RNG(0).normal(size=(9, 3))
    found = direction_test(x, [*"aaaaaaaab"])
    assert np.isnan([found.auroc, found.p_auroc, found.mmd, found.p_mmd]).all()
    assert found.note == "b has fewer than two groups, so none can be held out"
    assert np.isnan(found.p)
    few = direction_test(x, [*"aaaaaaabb"], permutations=40)
    assert few.folds == 2
    assert 0 <= few.auroc <= 1
    lone = direction_test(x, [*"ababababb"], groups=[0, 0, 1, 1, 2, 2, 3, 3, None])
    assert lone.note == "1 examples whose group has one category left out"
    whole = direction_test(x[:8], [*"abababab"], groups=[0, 0, 1, 1, 2, 2, 3, 3])
    assert vars(lone) == pytest.approx({**vars(whole), "note": lone.note})
    apart = direction_test(np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]), [*"aaabbb"], folds=3)
    assert (apart.auroc, apart.auroc_low, apart.auroc_high) == (1, pytest.approx(0.025 ** (1 / 3)), 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"vectors": np.ones(4)}, "vectors are \\(example, d\\) for 4 examples"),
        ({"vectors": [[1.0], [np.nan], [1.0], [1.0]]}, "the vector of example 1 has NaN"),
        ({"categories": "aaaa"}, "1 categories"),
        ({"categories": ["a", None, "b", "b"]}, "1 examples without one"),
        ({"groups": [1, 2]}, "2 groups for 4 examples"),
        ({"folds": 1}, "folds is 1"),
        ({"permutations": -3}, "permutations is -3"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], text: str) -> None:
    given_: dict[str, Any] = {"vectors": np.ones((4, 2)), "categories": "abab", **options}
    with pytest.raises(InputError, match=text):
        direction_test(given_.pop("vectors"), given_.pop("categories"), **given_)
    if "vectors" in options:
        with pytest.raises(InputError, match=f"layer.3: {text}"):
            direction_tests({"layer.3": options["vectors"]}, "abab")
