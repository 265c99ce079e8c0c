"""A drawing of the ratios: a pure function of what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .reading import cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WAYS = {"through": ("o", "through the Inspector"), "directly": ("x", "directly")}


def figure(kept: Mapping[str, Any]) -> Figure:
    """Ratio to bare of each operation on the first shape, a line of intervals a backend; logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    first = kept["settings"]["shapes"][0]["name"]
    every = [cell for cell in cells(kept) if cell.shape == first and cell.device == "cpu"]
    operations = list(dict.fromkeys(cell.operation for cell in every))
    backends = [
        name
        for name in dict.fromkeys(cell.backend for cell in every)
        if any(cell.ratio(way, "bare") for cell in every if cell.backend == name for way in _WAYS)
    ]
    columns = 4
    rows = -(-len(operations) // columns) or 1
    drawn = Figure(figsize=(10, 0.6 + rows * (0.7 + 0.2 * len(backends))), layout="constrained")
    axes = drawn.subplots(rows, columns, sharey=True, squeeze=False).flat
    for ax, operation in zip(axes, [*operations, *[""] * (rows * columns - len(operations))], strict=True):
        ax.set_visible(bool(operation))
        ax.axvline(1.0, color="0.7", linewidth=0.8)
        ax.set_title(operation.replace("_", " "), fontsize=9)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
        ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_yticks(range(len(backends)), backends, fontsize=8)
        ax.tick_params(axis="x", labelsize=7)
        for cell in every:
            if cell.operation == operation and cell.backend in backends:
                for offset, (way, (marker, _)) in zip((0.15, -0.15), _WAYS.items(), strict=True):
                    ratio = cell.ratio(way, "bare")
                    if ratio is not None:
                        at = backends.index(cell.backend) + offset
                        error = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
                        colour = "C0" if way == "through" else "C1"
                        ax.errorbar(
                            [ratio.value], [at], xerr=error, fmt=marker, color=colour, markersize=4, linewidth=1
                        )
        ax.set_ylim(len(backends) - 0.5, -0.5)
    for way, (marker, label) in _WAYS.items():
        drawn.axes[0].plot([], [], marker, color="C0" if way == "through" else "C1", label=label, markersize=4)
    drawn.legend(
        *drawn.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, title_fontsize=8,
        title="ratio to the bare model",
    )  # fmt: skip
    return drawn
