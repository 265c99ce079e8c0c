"""The paper's figures, as PDF without dates, so that the same results give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crosslens.tasks.page import split_layer

from .sources import Results, reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "font.size": 7.0,
    "font.family": "serif",
    "mathtext.fontset": "dejavuserif",
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "pdf.fonttype": 42,
    "pdf.compression": 0,  # no bytes that depend on a build of zlib
    "svg.hashsalt": "crosslens",
}
_NO_DATES = {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None}


def kinds(results: Results) -> bytes:
    """Where two kinds of prompts differ: the largest effect of any key figure by kind of site and layer."""
    sites = results.studies["stories"]["stories"]["two_kinds"]["found"]["sites"]
    places = [(*split_layer(each["site"]), each) for each in sites]
    rows = list(dict.fromkeys(kind for kind, _, _ in places))
    layers = sorted({layer for _, layer, _ in places if layer is not None})
    grid = np.full((len(rows), len(layers)), np.nan)
    shown = np.zeros(grid.shape, dtype=bool)
    for kind, layer, each in places:
        if layer is not None:
            place = rows.index(kind), layers.index(layer)
            grid[place], shown[place] = abs(each["g"]), each["shown"]

    def draw(figure: Figure, ax: Axes) -> None:
        image = ax.imshow(grid, cmap="viridis", aspect="auto", vmin=0.0, interpolation="nearest")
        y, x = np.nonzero(shown)
        ax.plot(x, y, "o", color="white", markersize=2.2, markeredgewidth=0.3, markeredgecolor="black")
        ax.set_yticks(range(len(rows)), [kind.removeprefix("blocks.*.") for kind in rows])
        ax.set_xticks(range(0, len(layers), 5), [str(layer) for layer in layers[::5]])
        ax.set_xlabel("layer", labelpad=1.0)
        figure.colorbar(image, ax=ax, label="largest $|g|$", pad=0.02)

    return _drawn((3.35, 1.15), draw)


def sick(results: Results) -> bytes:
    """Which layer is sick, and since when: what the sick worker's outputs are of the other's, by layer and step."""
    found = results.studies["stories"]["stories"]["sick_training"]["found"]
    grid = found["grid"]
    kept = [i for i, site in enumerate(grid["sites"]) if site != "module::output"]  # the last layer once more
    ratios = np.asarray(grid["ratios"], dtype=np.float64)[kept]
    most = float(np.abs(np.log2(ratios)).max())

    def draw(figure: Figure, ax: Axes) -> None:
        image = ax.imshow(np.log2(ratios), cmap="RdBu_r", aspect="auto", vmin=-most, vmax=most, interpolation="nearest")
        ax.set_yticks(range(len(kept)), [grid["sites"][i].removeprefix("module:").partition(":")[0] for i in kept])
        ax.set_xticks(np.arange(len(grid["steps"])) - 0.5, [str(step) for step in grid["steps"]])
        ax.set_xlabel("step", labelpad=1.0)
        ax.set_ylabel("layer", labelpad=2.0)
        figure.colorbar(image, ax=ax, label="$\\log_2$ sd ratio", pad=0.02)

    return _drawn((3.35, 1.15), draw)


def _drawn(size: tuple[float, float], draw: Callable[[Figure, Axes], None]) -> bytes:
    """A figure of `size` inches, whatever settings matplotlib has here."""
    import matplotlib as mpl
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    buffer = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01))
        FigureCanvasPdf(figure)
        draw(figure, figure.add_subplot())
        figure.savefig(buffer, format="pdf", metadata=_NO_DATES)
    return buffer.getvalue()


FIGURES: Mapping[str, tuple[str, Callable[[Results], bytes]]] = {"kinds": ("stories", kinds), "sick": ("stories", sick)}
"""File -> the study that it is of, and what draws it."""


def render(results: Results) -> dict[str, bytes]:
    """File name, without its ending -> PDF."""
    found: dict[str, Any] = {}
    for file, (study, make) in FIGURES.items():
        if study in results.studies:
            with reading(results, study):
                found[file] = make(results)
    return found
