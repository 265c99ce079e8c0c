"""Key figures against NumPy, with padding that must not matter; effect sizes against the literature and simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats
from torch import Tensor

from crosslens.adapters import InputError
from crosslens.tasks.effects import (
    contrasts,
    false_discovery,
    rank_agreement,
    rounding,
    small_sample_correction,
)
from crosslens.tasks.kpis import NAMES, causal_mask, kpis

ELEMENTS = st.floats(-1e6, 1e6, width=32)
TENSORS = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=ELEMENTS)
)


def by_definition(rows: list[np.ndarray[Any, Any]], *, distributions: bool = False) -> dict[str, float]:
    """The key figures of one example, from its rows of real elements."""
    rows = [row.astype(np.float64) for row in rows]
    x = np.concatenate(rows)
    return {
        "count": x.size,
        "mean": x.mean(),
        "sd": x.std(),
        "abs_mean": np.abs(x).mean(),
        "rms": np.sqrt((x * x).mean()),
        "abs_max": np.abs(x).max(),
        "min": x.min(),
        "max": x.max(),
        "zero_fraction": (x == 0).mean(),
        "mean_norm": np.mean([np.linalg.norm(row) for row in rows]),
        "entropy": np.mean([special.entr(row).sum() for row in rows]) if distributions else np.nan,
    }


def assert_figures(found: Tensor, expected: dict[str, float]) -> None:
    for name, value in zip(NAMES, found.tolist(), strict=True):
        wanted = expected[name]
        # a spread is computed from deviations, whose rounding is that of the elements
        slack = 1e-14 * expected["abs_max"] if name in ("sd", "mean") else 0.0
        assert value == pytest.approx(wanted, rel=1e-12, abs=slack, nan_ok=True), name


@given(TENSORS, st.data())
def test_key_figures_are_those_of_the_real_rows(x: np.ndarray[Any, Any], data: st.DataObject) -> None:
    batch, width, _ = x.shape
    lengths = [data.draw(st.integers(1, width)) for _ in range(batch)]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    found = kpis(torch.from_numpy(x), mask[:, :, None])
    for row, (example, length) in enumerate(zip(x, lengths, strict=True)):
        assert_figures(found[row], by_definition(list(example[:length])))


@given(TENSORS, st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 7.0, -1e30, np.nan, np.inf]))
def test_padding_does_not_matter(x: np.ndarray[Any, Any], left: int, right: int, filling: float) -> None:
    tensor = torch.from_numpy(x)
    alone = kpis(tensor, torch.ones(*x.shape[:2], 1, dtype=torch.bool))
    padded = torch.nn.functional.pad(tensor, (0, 0, left, right), value=filling)
    real = torch.zeros(padded.shape[0], padded.shape[1], 1, dtype=torch.bool)
    real[:, left : left + x.shape[1]] = True
    torch.testing.assert_close(kpis(padded, real), alone, rtol=1e-12, atol=1e-9, equal_nan=True)


@given(st.integers(1, 3), st.integers(1, 4), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 2**31))
def test_key_figures_of_patterns(heads: int, pad: int, lengths: list[int], seed: int) -> None:
    width = max(lengths) + pad
    rng = np.random.default_rng(seed)
    pattern = rng.normal(size=(len(lengths), heads, width, width)).astype(np.float32)  # what is masked means nothing
    examples = []
    for row, length in enumerate(lengths):
        examples.append([])
        for head in range(heads):
            for query in range(length):
                real = rng.dirichlet(np.ones(query + 1)).astype(np.float32)
                pattern[row, head, query, : query + 1] = real
                examples[-1].append(real)
    tokens = torch.arange(width) < torch.tensor(lengths)[:, None]
    found = kpis(torch.from_numpy(pattern), causal_mask(tokens), distributions=True)
    for row, rows in enumerate(examples):
        assert_figures(found[row], by_definition(rows, distributions=True))


def test_causal_mask_with_padding_on_the_left() -> None:
    mask = causal_mask(torch.tensor([[0, 1, 1]]))
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist() == [[False] * 3, [False, True, False], [False, True, True]]


def test_figures_are_accumulated_in_float64() -> None:
    x = torch.full((1, 4096, 512), 0.1, dtype=torch.float32)
    figures = dict(zip(NAMES, kpis(x, torch.ones(1, 1, 1, dtype=torch.bool))[0].tolist(), strict=True))
    exact = float(np.float32(0.1))
    for name in ("mean", "abs_mean", "rms"):
        assert figures[name] == pytest.approx(exact, rel=1e-13), name
    assert figures["count"] == 4096 * 512
    assert figures["sd"] < 1e-13
    big = 1e8 + torch.tensor([[[0.0, 1.0, 2.0, 3.0]]], dtype=torch.float64)  # a square of sums would lose the spread
    assert kpis(big, torch.ones(1, 1, 1, dtype=torch.bool))[0, NAMES.index("sd")].item() == pytest.approx(1.25**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_gives_float64(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1.0, -2.0, 0.0]]], dtype=dtype)
    found = kpis(x, torch.ones(1, 1, 1, dtype=torch.bool))
    assert found.dtype == torch.float64
    assert_figures(found[0], by_definition([np.array([1.0, -2.0, 0.0])]))


@pytest.mark.parametrize(
    ("tensor", "mask", "says"),
    [
        (torch.zeros(2, 3, 4).long(), torch.ones(2, 3, 1).bool(), "floating-point"),
        (torch.zeros(2), torch.ones(2).bool(), "floating-point"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3, 1), "must be bool"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3).bool(), "must be bool"),
        (torch.zeros(2, 3, 4), torch.ones(1, 3, 1).bool(), r"\(2, 3, 4\)"),
        (torch.zeros(2, 3, 4), torch.ones(2, 2, 1).bool(), r"\(2, 2, 1\)"),
        (torch.zeros(2, 3, 4), torch.tensor([[[True]], [[False]]]), "example 1 has no real element"),
    ],
)
def test_what_has_no_key_figures_is_refused(tensor: Tensor, mask: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        kpis(tensor, mask)


# --- effect sizes ---


def design(pairs: int, categories: int) -> pd.DataFrame:
    return pd.DataFrame(
        [{"attribute": "age", "category": f"c{c}", "pair": f"p{p}"} for p in range(pairs) for c in range(categories)]
    )


def test_contrasts_are_paired() -> None:
    rows = design(5, 3).sample(frac=1, random_state=0)  # order does not matter
    rng = np.random.default_rng(1)
    values = rng.normal(size=(15, 2))
    table = rows.assign(x=values[:, 0]).pivot(index="pair", columns="category", values="x")
    for contrast in contrasts(values, rows):
        own = table[contrast.category]
        differences = own - table.drop(columns=contrast.category).mean(axis=1)
        t, p = stats.ttest_1samp(differences, 0)
        assert (contrast.attribute, contrast.n) == ("age", 5)
        assert contrast.mean[0] == pytest.approx(own.mean())
        assert contrast.sd[0] == pytest.approx(own.std())
        assert contrast.g[0] == pytest.approx(t / np.sqrt(5) * small_sample_correction(4))
        assert contrast.p[0] == pytest.approx(p)


def test_what_all_examples_of_a_pair_share_does_not_matter() -> None:
    rows = design(6, 2)
    values = np.random.default_rng(2).normal(size=12)
    shared = np.repeat(1e3 * np.arange(6.0), 2)
    for plain, shifted in zip(contrasts(values, rows), contrasts(values + shared, rows), strict=True):
        assert shifted.g == pytest.approx(plain.g)


def test_equal_differences_have_no_effect_size() -> None:
    first, second = contrasts(np.tile([0.0, 0.0, 1.0, 0.0], (4, 1)).reshape(8, 2), design(4, 2))
    assert np.isnan(first.g[1])
    assert first.g[0] == -np.inf
    assert second.g[0] == np.inf


def test_the_small_sample_correction_in_closed_form() -> None:
    exact = {2: 1 / np.sqrt(np.pi), 3: np.sqrt(np.pi / 6), 4: np.sqrt(2 / np.pi)}
    for df, j in exact.items():
        assert small_sample_correction(df) == pytest.approx(j)
    for df in (10, 13, 1000):  # the approximation that most software uses
        assert small_sample_correction(df) == pytest.approx(1 - 3 / (4 * df - 1), rel=1e-3)
    assert np.isnan(small_sample_correction(1))


def test_the_correction_removes_the_bias() -> None:
    differences = np.random.default_rng(3).normal(loc=0.8, size=(40_000, 5))
    d = differences.mean(1) / differences.std(1, ddof=1)
    assert d.mean() > 0.95
    assert small_sample_correction(4) * d.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (design(1, 2), "1 pairs of 2 categories"),
        (design(3, 1), "3 pairs of 1 categories"),
        (design(3, 2).drop(index=4), "1 examples of them missing"),
        (pd.concat([design(2, 2), design(1, 1)]), "holds a category twice"),
    ],
)
def test_designs_that_are_not_paired_are_refused(rows: pd.DataFrame, says: str) -> None:
    with pytest.raises(InputError, match=says):
        contrasts(np.zeros(len(rows)), rows)


def test_false_discovery_passes_nan_through() -> None:
    q = false_discovery([0.01, np.nan, 0.04, 0.03])
    assert q == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)
    assert np.isnan(false_discovery([np.nan])).all()


def test_rank_agreement_is_spearmans() -> None:
    a, b = np.random.default_rng(4).integers(0, 5, size=(2, 30))
    assert rank_agreement(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_agreement([1.0, 2.0, 3.0], [10.0, 5.0, 1.0]) == pytest.approx(-1)
    assert np.isnan(rank_agreement([1.0, 1.0], [1.0, 2.0]))
    assert np.isnan(rank_agreement([], []))


def test_rounding_grows_with_eps() -> None:
    assert rounding("float64") < 1e-13 < 1e-6 < rounding("float32") < 1e-4 < rounding("bfloat16")
