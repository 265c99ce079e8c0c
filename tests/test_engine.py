"""The KPI engine against numpy by definition, whatever the shape, dtype, layout, mask and split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosslens.adapters import InputError
from crosslens.tasks.accumulators import Moments, Quantiles, UnitMoments, comgra_figures
from crosslens.tasks.engine import KPIS, figures, top_singular_value

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.bool)


def by_definition(x: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], distributions: bool = False) -> dict[str, float]:
    """Figures of one example, rows along its last axis."""
    finite = mask & np.isfinite(x)
    v = x[finite]
    rows = [(row[ok], real) for row, ok, real in zip(x, finite, mask.any(-1), strict=True) if real]
    found = dict.fromkeys(KPIS, math.nan) | {"count": len(v)}
    found |= {"nan": (np.isnan(x) & mask).sum(), "inf": (np.isinf(x) & mask).sum()}
    if len(v):
        found |= {"mean": v.mean(), "sd": v.std(), "abs_mean": abs(v).mean(), "rms": np.sqrt((v**2).mean())}
        found |= {"abs_max": abs(v).max(), "min": v.min(), "max": v.max(), "zero_fraction": (v == 0).mean()}
        found["mean_norm"] = np.mean([np.linalg.norm(row) for row, _ in rows])
        if distributions:
            found["entropy"] = np.mean([-(row[row > 0] * np.log(row[row > 0])).sum() for row, _ in rows])
        if v.std() > 0:
            z = (v - v.mean()) / v.std()
            found |= {"skewness": (z**3).mean(), "kurtosis": (z**4).mean() - 3}
    return found


def same(got: Tensor, want: dict[str, float], loose: float = 1e-9) -> None:
    for name, value in zip(KPIS, got.tolist(), strict=True):
        assert value == pytest.approx(want[name], rel=loose, abs=loose, nan_ok=True), name


@settings(max_examples=60)
@given(data=st.data())
def test_figures_are_what_they_are_defined_to_be(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=generator).mul(3).round(decimals=1).to(dtype)
    if dtype.is_floating_point and data.draw(st.booleans()):
        x.view(-1)[:: data.draw(st.integers(2, 5))] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
    if data.draw(st.booleans()):  # another layout of the same shape
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    mask = None
    if data.draw(st.booleans()):
        thin = [shape[0], *(data.draw(st.sampled_from([1, size])) for size in shape[1:])]
        mask = torch.rand(thin, generator=generator) > 0.3
    got = figures(x, mask)
    assert got.shape == (shape[0], len(KPIS))
    marks = torch.ones(shape, dtype=torch.bool) if mask is None else mask.expand(shape)
    for i in range(shape[0]):
        flat, real = (t[i].reshape(-1, shape[-1]) for t in (x.double(), marks))
        same(got[i], by_definition(flat.numpy(), real.numpy()))


@pytest.mark.parametrize("keep", [(1,), (2,), (1, 2), (-1,), (2, 3)])
def test_kept_axes_stay_separate(keep: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    got = figures(x, keep=keep)
    axes = sorted(axis % 4 for axis in keep)
    assert got.shape == (2, *(x.shape[axis] for axis in axes), len(KPIS))
    rest = [axis for axis in range(1, 4) if axis not in axes]
    moved = x.permute(0, *axes, *rest).reshape(*got.shape[:-1], -1, x.shape[rest[-1]])
    for index in np.ndindex(*got.shape[:-1]):
        block = moved[index].numpy()
        same(got[index], by_definition(block, np.ones(block.shape, dtype=bool)))


def test_patterns_have_entropy_of_their_rows_alone() -> None:
    pattern = torch.softmax(torch.randn(2, 3, 6, 6, dtype=torch.float64), -1).tril()
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    got = figures(pattern, mask, distributions=True)
    for i in range(2):
        flat = pattern[i].reshape(-1, 6).numpy(), mask.expand(2, 3, 6, 6)[i].reshape(-1, 6).numpy()
        same(got[i], by_definition(*flat, distributions=True))
    uniform = torch.full((1, 1, 2, 8), 1 / 8)
    assert figures(uniform, distributions=True)[0, KPIS.index("entropy")] == pytest.approx(math.log(8))


def test_any_rank_one_example_and_gradients() -> None:
    same(figures(torch.tensor([3.0, -1.0]))[1], by_definition(np.array([[-1.0]]), np.ones((1, 1), dtype=bool)))
    leaf = torch.randn(1, 4, requires_grad=True)
    with torch.no_grad():
        assert figures(leaf).shape == (1, len(KPIS))
    assert leaf.grad is None
    empty = figures(torch.randn(2, 3), torch.zeros(2, 1, dtype=torch.bool))
    assert empty[:, 0].eq(0).all()
    assert empty[:, 1:13].isnan().all()


def test_a_large_offset_loses_no_digits() -> None:
    x = torch.randn(2, 100, 64, dtype=torch.float64)
    near, far = figures(x), figures(x + 1e7)
    for name in ("sd", "skewness", "kurtosis"):
        at = KPIS.index(name)
        assert torch.allclose(near[:, at], far[:, at], rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize(
    ("tensor", "options", "says"),
    [
        (torch.zeros(2, 0), {}, "with elements"),
        (torch.zeros(2, 3, dtype=torch.complex64), {}, "complex64"),
        (torch.zeros(2, 3), {"mask": torch.ones(2, 2, dtype=torch.bool)}, "bool of that shape"),
        (torch.zeros(2, 3), {"mask": torch.ones(2, 3)}, "float32"),
        (torch.zeros(2, 3), {"keep": (0,)}, "axes 1 to 1"),
        (torch.zeros(2, 3), {"keep": (2,)}, "axes 1 to 1"),
    ],
)
def test_mistakes_are_refused(tensor: Tensor, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        figures(tensor, **options)


# ---- over a corpus


@settings(max_examples=25)
@given(data=st.data())
def test_any_split_and_order_of_a_corpus_gives_the_same(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    corpus = [torch.from_numpy(rng.normal(rng.normal() * 5, 1 + i, size=(2, 3, 4))) for i in range(6)]
    corpus[2][0, 0] = math.nan
    order = data.draw(st.permutations(range(6)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 5), max_size=3)))
    whole, units = Moments(), UnitMoments(4)
    for each in corpus:
        whole.update(each)
        units.update(each)
    merged, merged_units = Moments(), UnitMoments(4)
    for start, end in zip([0, *cuts], [*cuts, 6], strict=True):
        part, part_units = Moments(), UnitMoments(4)
        for i in order[start:end]:
            part.update(corpus[i])
            part_units.update(corpus[i])
        merged = merged.merge(Moments.from_state(part.to_state()))
        merged_units = merged_units.merge(part_units)
    assert merged.figures() == pytest.approx(whole.figures(), rel=1e-9, nan_ok=True)
    for name, value in units.figures().items():
        assert merged_units.figures()[name] == pytest.approx(value, rel=1e-9), name
    everything = torch.cat(corpus).reshape(1, -1, 4)
    want = dict(zip(KPIS, figures(everything)[0].tolist(), strict=True))
    assert whole.figures() == pytest.approx(want, rel=1e-9, nan_ok=True)


def test_units_have_their_own_mean_and_variance() -> None:
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    mask = torch.rand(5, 7, 1) > 0.4
    units = UnitMoments(3)
    units.update(x, mask)
    real = x[mask[..., 0]].numpy()
    assert units.figures()["mean"] == pytest.approx(real.mean(0))
    assert units.figures()["variance"] == pytest.approx(real.var(0, ddof=1))
    with pytest.raises(InputError, match="last axis has 4 units"):
        units.update(torch.zeros(2, 4))


@pytest.mark.parametrize("parts", [1, 7])
def test_sketches_are_right_within_their_rank_error(parts: int) -> None:
    rng = np.random.default_rng(3)
    values = np.stack([rng.normal(size=20_000), rng.exponential(size=20_000)], axis=1)
    values[::1000, 0] = math.nan
    merged = Quantiles(2)
    for part in np.array_split(values, parts):
        each = Quantiles(2)
        each.update(part)
        merged = merged.merge(Quantiles.from_bytes(each.to_bytes()))
    ranks = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = merged.quantiles(ranks)
    for column in range(2):
        seen = np.sort(values[np.isfinite(values[:, column]), column])
        got = np.searchsorted(seen, found[column]) / len(seen)
        assert np.abs(got - ranks).max() < 0.02
    assert np.isnan(Quantiles(1).quantiles(ranks)).all()


def test_comgras_figures_are_comgras(tmp_path: Any) -> None:
    """Against comgra itself, through its adapter."""
    from crosslens.adapters import open_inspector

    model = torch.nn.Linear(6, 4).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    with open_inspector("comgra", model) as lens, lens.record("module::output", out=tmp_path / "r") as recording:
        with recording.step("a") as step:
            step.loss(model(x).square().mean())
        table = recording.table()
    rows = table[table["kind"] == "activation"]
    want = {
        f"{r['kpi']}/{r['aggregate']}": r["value"] for _, r in rows.iterrows() if r["aggregate"].startswith("batch")
    }
    assert comgra_figures(model(x)) == pytest.approx({k: want[k] for k in want}, rel=1e-6)
    assert len(want) == 12


def test_the_largest_singular_value() -> None:
    matrix = torch.randn(4, 3, 2, dtype=torch.float64)
    assert top_singular_value(matrix) == pytest.approx(np.linalg.svd(matrix.reshape(4, 6).numpy())[1][0])
    with pytest.raises(InputError, match="needs a matrix"):
        top_singular_value(torch.zeros(3))
