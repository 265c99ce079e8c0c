"""Figures for a paper: what is drawn is what the tables say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from crosslens.adapters import InputError
from crosslens.tasks.plots import COLOURS, plot_curves, plot_distributions, plot_heatmap, plot_ranking
from crosslens.tasks.statistics import contrasts, ranking

SITES = ["embed", "blocks.0.resid_post", "blocks.1.resid_post", "blocks.1.mlp.out"]


@pytest.fixture
def ax() -> Iterator[Axes]:
    """Axes of a figure that pyplot knows nothing of; drawn at the end, which must not fail."""
    figure = Figure()
    FigureCanvasAgg(figure)
    yield figure.add_subplot()
    figure.canvas.draw()


def found(values: np.ndarray | None = None) -> pd.DataFrame:
    if values is None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(20, len(SITES))) + np.repeat([[0.0], [1.0]], 10, axis=0) * [0, 1, 2, -3]
    names = [(site, "rms") for site in SITES]
    table = contrasts(values, ["x"] * 10 + ["y"] * 10, names=names, permutations=0)
    return table.assign(site=[f[0] for f in table["feature"]], kpi=[f[1] for f in table["feature"]])


def test_the_heat_map_shows_g_at_its_kind_and_layer(ax: Axes) -> None:
    table = found()
    assert plot_heatmap(table, "rms", "y", "x", ax) is ax
    (image,) = ax.images
    shown = np.ma.filled(image.get_array(), np.nan)
    g = dict(zip(table["site"], -table["g"], strict=True))  # the table has x - y
    nan = np.nan
    want = [[g["embed"], nan, nan], [nan, g[SITES[1]], g[SITES[2]]], [nan, nan, g[SITES[3]]]]
    np.testing.assert_allclose(shown, want)
    assert image.get_clim() == pytest.approx((-np.abs(list(g.values())).max(), np.abs(list(g.values())).max()))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["embed", "resid_post", "mlp.out"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["–", "0", "1"]
    assert g[SITES[1]] > 0 > g[SITES[3]]
    assert image.cmap(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.02), "0 is white"


def test_an_infinite_effect_is_marked_and_does_not_hide_the_others(ax: Axes) -> None:
    values = np.random.default_rng(1).normal(size=(20, 4))
    values[:10, 0], values[10:, 0] = 1, 2
    plot_heatmap(found(values), "rms", "x", "y", ax)
    assert [(t.get_text(), t.get_position()) for t in ax.texts] == [("−∞", (0, 0))]
    assert np.isfinite(ax.images[0].get_clim()[1])
    assert ax.images[0].get_array()[0, 0] == ax.images[0].get_clim()[0]


def test_boxes_are_the_quantiles(ax: Axes) -> None:
    rows = [
        {"site": "embed", "kpi": "rms", "kind": c, "n": 9, "min": 0 + i, "q05": 1 + i, "q25": 2 + i, "q50": 4 + i,
         "q75": 5 + i, "q95": 7 + i, "max": 11 + i}
        for i, c in enumerate(("sea", "hill"))
    ]  # fmt: skip
    assert plot_distributions(pd.DataFrame(rows), "embed", "rms", ax) is ax
    for i, box in enumerate(ax.patches):
        heights = box.get_path().vertices[:, 1]
        assert (heights.min(), heights.max()) == (2 + i, 5 + i)
        assert to_rgba(box.get_facecolor())[:3] == to_rgba(COLOURS[i])[:3]
    drawn = [sorted(set(line.get_ydata())) for line in ax.lines]
    for want in ([4], [5], [1, 2], [5, 7], [0, 11], [1, 12]):
        assert want in drawn
    assert [t.get_text() for t in ax.get_xticklabels()] == ["sea\nn = 9", "hill\nn = 9"]


def test_the_ranking_has_its_strongest_on_top_with_intervals(ax: Axes) -> None:
    ranked = ranking(found())
    assert plot_ranking(ranked, 3, ax) is ax
    points = ax.lines[1]
    np.testing.assert_allclose(points.get_xdata(), ranked["g"][:3])
    assert points.get_ydata().tolist() == [0, 1, 2]
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 0], ranked[["g_low", "g_high"]][:3])
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first is on top"
    assert ax.get_yticklabels()[0].get_text() == "blocks.1.mlp.out  rms"
    assert ax.get_xlabel() == "Hedges' g, x − y"


def test_an_infinite_g_is_an_arrow_and_untested_rows_are_left_out(ax: Axes) -> None:
    values = np.random.default_rng(1).normal(size=(20, 4))
    values[:10, 0], values[10:, 0], values[:, 1] = 1, 2, np.nan
    ranked = ranking(found(values))
    plot_ranking(ranked, ax=ax)
    assert len(ax.get_yticks()) == 3
    assert [line.get_marker() for line in ax.lines[2:]] == ["<"]
    assert ax.lines[2].get_xdata()[0] < ax.lines[1].get_xdata().min()


def test_curves_are_in_the_order_of_their_steps(ax: Axes) -> None:
    curves = pd.DataFrame(
        [("loss", "easy", 2, 0.5), ("loss", "hard", 1, 3.0), ("loss", "easy", 1, 1.0), ("accuracy", "easy", 1, 0.1)],
        columns=["name", "category", "step", "value"],
    )
    assert plot_curves(curves, "loss", ax) is ax
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 1.0], [2, 0.5]], [[1, 3.0]]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["easy", "hard"]


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda ax: plot_heatmap(found(), "rmss", "x", "y", ax), "no key figure 'rmss'; nearest: 'rms'"),
        (lambda ax: plot_heatmap(found(), "rms", "x", "z", ax), "no category 'z'"),
        (
            lambda ax: plot_heatmap(found(), "rms", "x", "x", ax),
            "'x' and 'x' were not contrasted; there are 'x' and 'y'",
        ),
        (lambda ax: plot_heatmap(found().assign(g=np.nan), "rms", "x", "y", ax), "nothing was tested"),
        (lambda ax: plot_heatmap(found().drop(columns="g"), "rms", "x", "y", ax), "no column 'g'; it has feature"),
        (lambda ax: plot_distributions(found(), "embed", "rms", ax), "the table has no column 'n'"),
        (lambda ax: plot_ranking(ranking(found()), 0, ax), "top is 0"),
        (lambda ax: plot_ranking(ranking(found()).assign(g=np.nan), 3, ax), "no row of the ranking was tested"),
        (
            lambda ax: plot_curves(pd.DataFrame(columns=["name", "category", "step", "value"]), "loss", ax),
            "it is empty",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(ax: Axes, draw: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        draw(ax)
    assert not ax.has_data()


def test_pyplot_is_used_only_without_axes(ax: Axes) -> None:
    before = mpl.get_backend()
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    try:
        assert not pyplot.get_fignums()
        plot_heatmap(found(), "rms", "x", "y", ax)
        assert not pyplot.get_fignums()
        own = plot_ranking(ranking(found()))
        assert pyplot.get_fignums() == [own.figure.number]
    finally:
        pyplot.close("all")
        pyplot.switch_backend(before)
