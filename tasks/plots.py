"""Figures of a comparison for a paper, drawn by matplotlib from the tables alone.

    figure, ax = plt.subplots(figsize=(4, 3))
    plot_heatmap(result.contrasts(), "rms", "story", "code", ax)

Each takes the axes to draw on, and returns them; of pyplot's state nothing is read or changed then. Without axes a new
pyplot figure is made. Fonts and line widths are left to matplotlib's own settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crosslens.adapters.errors import InputError

from .page import split_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparison import Comparison

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Of Okabe and Ito, told apart with any colour vision."""
_QUANTILES = ("q05", "q25", "q50", "q75", "q95")


def plot_heatmap(contrasts: pd.DataFrame, kpi: str, a: str, b: str, ax: Axes | None = None) -> Axes:
    """Hedges' g of a key figure by kind of site (rows) and layer (columns), on a diverging scale centred on 0.

    Args:
        contrasts: as of `Comparison.contrasts`: columns site, kpi, a, b, g.
        kpi: the key figure.
        a, b: the categories; positive g means more in `a`, whichever way round the table has them.
        ax: to draw on.

    Sites without a layer stand left of layer 0. What was not tested is grey, and an infinite g is marked.

    Raises:
        InputError: no such column, key figure, category or contrast, or nothing of it was tested.
    """
    _has(contrasts, "contrasts", ("site", "kpi", "a", "b", "g"))
    rows = contrasts[contrasts["kpi"] == _known("key figure", kpi, contrasts["kpi"])]
    for name in (a, b):
        _known("category", name, [*contrasts["a"], *contrasts["b"]])
    sign = np.where((rows["a"] == a) & (rows["b"] == b), 1, np.where((rows["a"] == b) & (rows["b"] == a), -1, 0))
    rows = rows.assign(g=rows["g"] * sign)[sign != 0]
    if not len(rows):
        there = sorted({f"{x!r} and {y!r}" for x, y in zip(contrasts["a"], contrasts["b"], strict=True)})
        raise InputError(f"{a!r} and {b!r} were not contrasted; there are {'; '.join(there[:8])}")
    if rows["g"].isna().all():
        raise InputError(f"{kpi!r} has no effect size between {a!r} and {b!r} at any site: nothing was tested")
    kinds, layers, grid = _by_layer(rows)
    ax = ax if ax is not None else _new_axes()
    finite = np.abs(grid[np.isfinite(grid)])
    most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    ax.set_facecolor("0.85")
    shown = np.ma.masked_invalid(np.clip(grid, -most, most))
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    for i, j in np.argwhere(np.isinf(grid)):
        ax.text(int(j), int(i), "∞" if grid[i, j] > 0 else "−∞", ha="center", va="center", color="white")
    ax.set_yticks(range(len(kinds)), [kind.removeprefix("blocks.*.") for kind in kinds])
    ax.set_xticks(range(len(layers)), ["–" if layer is None else str(layer) for layer in layers])
    ax.set_xlabel("layer")
    ax.set_title(f"{kpi}: {a} − {b}")
    ax.figure.colorbar(image, ax=ax, label="Hedges' g")
    return ax


def plot_distributions(
    comparison: Comparison | pd.DataFrame, site: str, kpi: str, ax: Axes | None = None, *, column: str | None = None
) -> Axes:
    """A box for each category: quartiles and median, whiskers from the 5 % to the 95 % quantile, and the extremes.

    Args:
        comparison: or its `table`.
        site, kpi: which figure.
        ax: to draw on.
        column: of the categories; None for the crossed one, the last before the figures.

    Raises:
        InputError: no such column, site or key figure, or no category has a figure there.
    """
    table = comparison if isinstance(comparison, pd.DataFrame) else comparison.table
    _has(table, "table", ("site", "kpi", "n", "min", *_QUANTILES, "max"))
    if column is None:
        column = str(table.columns[list(table.columns).index("n") - 1])
    _has(table, "table", (column,))
    _known("site", site, table["site"])
    _known("key figure", kpi, table["kpi"])
    rows = table[(table["site"] == site) & (table["kpi"] == kpi)]
    if not len(rows):
        raise InputError(f"{site!r} has no {kpi!r}; it has {', '.join(table['kpi'][table['site'] == site].unique())}")
    rows = rows[rows["q50"].notna()]
    if not len(rows):
        raise InputError(f"{kpi!r} of {site!r} has no finite figure in any category")
    boxes = [
        {
            "label": f"{row[column]}\nn = {row['n']}", "whislo": row["q05"], "q1": row["q25"], "med": row["q50"],
            "q3": row["q75"], "whishi": row["q95"], "fliers": [row["min"], row["max"]],
        }
        for row in rows.to_dict("records")
    ]  # fmt: skip
    ax = ax if ax is not None else _new_axes()
    drawn = ax.bxp(
        boxes, patch_artist=True, medianprops={"color": "black"}, flierprops={"marker": ".", "markersize": 4},
    )  # fmt: skip
    for i, box in enumerate(drawn["boxes"]):
        box.set(facecolor=COLOURS[i % len(COLOURS)], alpha=0.6)
    ax.set_ylabel(kpi)
    ax.set_title(site)
    return ax


def plot_ranking(ranking: pd.DataFrame, top: int = 15, ax: Axes | None = None) -> Axes:
    """The strongest differences from the top down: Hedges' g with its interval.

    Args:
        ranking: as of `Comparison.ranking`: columns site, kpi, a, b, g, g_low, g_high.
        top: how many; untested rows are passed over. An infinite g is an arrow at the edge.
        ax: to draw on.

    Raises:
        InputError: no such column, `top` below 1, or nothing was tested.
    """
    _has(ranking, "ranking", ("site", "kpi", "a", "b", "g", "g_low", "g_high"))
    if top < 1:
        raise InputError(f"top is {top}; it must be at least 1")
    rows = ranking[ranking["g"].notna()].head(top).reset_index(drop=True)
    if not len(rows):
        raise InputError("no row of the ranking was tested: there is no effect size to draw")
    g, low, high = (rows[name].to_numpy(dtype=np.float64) for name in ("g", "g_low", "g_high"))
    at, finite = np.arange(len(rows)), np.isfinite(g)
    ax = ax if ax is not None else _new_axes()
    ax.axvline(0, color="0.6", linewidth=0.8)
    # a bound that could not be had is left out, rather than drawn as if the value were certain
    known = finite & np.isfinite(low) & np.isfinite(high)
    ax.hlines(at[known], low[known], high[known], color=COLOURS[0])
    ax.plot(g[finite], at[finite], "o", color=COLOURS[0])
    edge = float(np.abs(np.concatenate([g[finite], low[known], high[known], [1.0]])).max())
    for i in at[~finite].tolist():
        ax.plot([np.copysign(1.1 * edge, g[i])], [i], ">" if g[i] > 0 else "<", color=COLOURS[1])
    several = len(rows[["a", "b"]].drop_duplicates()) > 1
    names = [f"{row['site']}  {row['kpi']}" for row in rows.to_dict("records")]
    if several:
        names = [f"{n}\n{a} − {b}" for n, a, b in zip(names, rows["a"], rows["b"], strict=True)]
    ax.set_yticks(at, names)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("Hedges' g" if several else f"Hedges' g, {rows['a'][0]} − {rows['b'][0]}")
    return ax


def plot_curves(curves: pd.DataFrame, name: str, ax: Axes | None = None) -> Axes:
    """A scalar over the steps of a training run, a line for each category.

    Args:
        curves: columns name, category, step, value.
        name: of the scalar.
        ax: to draw on.

    Raises:
        InputError: no such column or name.
    """
    _has(curves, "curves", ("name", "category", "step", "value"))
    rows = curves[curves["name"] == _known("curve", name, curves["name"])]
    ax = ax if ax is not None else _new_axes()
    for i, (category, group) in enumerate(rows.groupby("category", sort=False)):
        line = group.sort_values("step", kind="stable")
        ax.plot(line["step"], line["value"], label=str(category), color=COLOURS[i % len(COLOURS)])
    ax.set_xlabel("step")
    ax.set_ylabel(name)
    ax.legend()
    return ax


def _by_layer(rows: pd.DataFrame) -> tuple[list[str], list[int | None], NDArray[np.float64]]:
    """Kinds, layers, and (kind, layer) g; NaN where there is none."""
    places = [split_layer(site) for site in rows["site"]]
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    layers: list[int | None] = [None] if any(layer is None for _, layer in places) else []
    layers += sorted({layer for _, layer in places if layer is not None})
    grid = np.full((len(kinds), len(layers)), np.nan)
    for (kind, layer), g in zip(places, rows["g"], strict=True):
        grid[kinds.index(kind), layers.index(layer)] = g
    return kinds, layers, grid


def _new_axes() -> Axes:
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _has(frame: pd.DataFrame, what: str, columns: Iterable[str]) -> None:
    if lacking := [column for column in columns if column not in frame]:
        raise InputError(f"the {what} has no column {lacking[0]!r}; it has {', '.join(map(str, frame.columns))}")


def _known(what: str, name: str, there: Iterable[str]) -> str:
    names = list(dict.fromkeys(map(str, there)))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise InputError(f"there is no {what} {name!r}; nearest: {', '.join(map(repr, near)) or 'none, it is empty'}")
    return name
