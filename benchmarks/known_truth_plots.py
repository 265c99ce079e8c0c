"""Power curves of the known-truth benchmark, drawn by matplotlib from the table of its cells.

plot_power(table, "direction")              # against size, at the largest n
plot_power(table, "direction", size=0.8)    # against n
save_power(table, "power.pdf")              # every kind, both ways
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from crosslens.adapters import InputError
from crosslens.tasks.plots import COLOURS

from .known_truth_tables import NULLS, interval
from .known_truth_ways import WAYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX"
SHOWN = ("crosslens", "crosslens: figures", "crosslens: directions", "comgra's figures", "t test of each neuron",
         "linear probe")  # fmt: skip
"""Ways that are drawn unless others are asked for: with all of `WAYS` the curves hide one another."""


def plot_power(
    table: pd.DataFrame,
    kind: str,
    ax: Axes | None = None,
    *,
    size: float | None = None,
    figure: str = "power",
    ways: Sequence[str] = SHOWN,
) -> Axes:
    """A figure of every way against the size of the difference, or against the number of examples.

    Args:
        table: as of `known_truth_tables.as_table`.
        kind: of difference.
        ax: to draw on; None makes a pyplot figure.
        size: draw against n at this size; None draws against size at the largest n.
        figure: "power", "first", "auroc", "ap", "false" or "fdp".
        ways: of `WAYS`.

    Points are means over seeds, bars their 95 % intervals by Student's t, cut at 0 and 1. Points of one x stand side by
    side, so that none hides another.

    Raises:
        InputError: no such kind, size, figure or way in the table.
    """
    kinds = [each for each in table["kind"].unique() if each not in NULLS]
    if kind not in kinds:
        raise InputError(f"nothing of kind {kind!r} is in the table; there are {', '.join(kinds)}")
    if figure not in ("power", "first", "auroc", "ap", "false", "fdp"):
        raise InputError(f"there is no figure {figure!r}; there are power, first, auroc, ap, false, fdp")
    if unknown := [way for way in ways if way not in set(table["way"])]:
        raise InputError(f"there is no way {unknown[0]!r} in the table; there are {', '.join(WAYS)}")
    rows = table[table["kind"] == kind]
    if size is not None and size not in set(rows["size"]):
        there = ", ".join(f"{each:g}" for each in sorted(rows["size"].unique()))
        raise InputError(f"no difference of kind {kind!r} and size {size:g} is in the table; there are {there}")
    along = "size" if size is None else "n"
    rows = rows[rows["n"] == rows["n"].max()] if size is None else rows[rows["size"] == size]
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.subplots()[1]
    ticks = sorted(rows[along].unique().tolist())
    for i, way in enumerate(ways):
        found = [interval(rows.loc[(rows["way"] == way) & (rows[along] == tick), figure].tolist()) for tick in ticks]
        mean, low, high = np.clip(np.array(found).T, 0.0, 1.0)
        place = np.arange(len(ticks)) + (i - (len(ways) - 1) / 2) * 0.07
        number = list(WAYS).index(way) if way in WAYS else i
        ax.errorbar(
            place, mean, yerr=[mean - low, high - mean], label=way, color=COLOURS[number % len(COLOURS)],
            ecolor=(COLOURS[number % len(COLOURS)], 0.5),
            marker=MARKERS[number % len(MARKERS)], markersize=4, linewidth=1, elinewidth=0.8,
        )  # fmt: skip
    ax.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    ax.set_xlabel("size" if size is None else "examples of each category")
    ax.set_ylabel(figure)
    ax.set_ylim(-0.03, 1.03)
    ax.set_title(f"{kind}, n {rows['n'].max()}" if size is None else f"{kind} {size:g}")
    return ax


def save_power(table: pd.DataFrame, path: str | Path, *, figure: str = "power", ways: Sequence[str] = SHOWN) -> None:
    """Write a page of curves: every kind against size at the largest n, below against n at the second largest size.

    Args:
        table, figure, ways: as of `plot_power`.
        path: its suffix is the format, such as .pdf or .png.

    Raises:
        InputError: as `plot_power`, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    kinds = [each for each in table["kind"].unique() if each not in NULLS]
    half = -(-len(kinds) // 2)
    page = Figure(figsize=(2.6 * half, 10.5), layout="constrained")
    grid = page.subplots(4, half, squeeze=False)
    for i, kind in enumerate(kinds):
        sizes = sorted(table.loc[table["kind"] == kind, "size"].unique().tolist())
        row, column = divmod(i, half)
        plot_power(table, kind, grid[row, column], figure=figure, ways=ways)
        plot_power(table, kind, grid[2 + row, column], size=sizes[max(0, len(sizes) - 2)], figure=figure, ways=ways)
    for empty in range(len(kinds), 2 * half):
        grid[1, empty - half].set_axis_off()
        grid[3, empty - half].set_axis_off()
    for axes in grid[:, 1:].flat:
        axes.set_ylabel("")
    page.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    try:
        page.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"the figure cannot be written to {path}: {error}") from error
