"""A drawing of the costs: a pure function of what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .axes import AXES
from .reading import backends, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "os^vDPX*"


def figure(kept: Mapping[str, Any]) -> Figure:
    """Milliseconds over the bare forward against what grows, a curve with intervals a backend; both axes logarithmic.

    A cost that is not above 0 has no place on such an axis and is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    axes, names = list(kept["settings"]["axes"]), backends(kept)
    columns = min(3, len(axes)) or 1
    rows = -(-len(axes) // columns) or 1
    drawn = Figure(figsize=(3.4 * columns, 2.9 * rows + 0.4), layout="constrained")
    panels = list(drawn.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    for panel, axis in zip(panels, axes, strict=False):
        for i, name in enumerate(names):
            points = {x: e for x, e in curve(kept, name, axis).items() if e.value > 0}
            if points:
                low = [e.value - max(e.low, 1e-9) for e in points.values()]
                high = [e.high - e.value for e in points.values()]
                panel.errorbar(
                    list(points), [e.value for e in points.values()], yerr=[low, high], label=name, markersize=4,
                    marker=_MARKERS[i % len(_MARKERS)], color=f"C{i % 10}", linewidth=1,
                )  # fmt: skip
        values = kept["settings"]["axes"][axis]
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(values, map(str, values), minor=False)
        panel.xaxis.set_minor_locator(NullLocator())
        lowest = min((y for each in panel.lines for y in each.get_ydata() if y > 0), default=1.0)
        panel.set_ylim(bottom=lowest / 3)  # an interval that reaches 0 would reach down without end
        panel.set_title(f"by {axis}", fontsize=9)
        panel.set_xlabel(f"{AXES[axis].unit}s" if axis != "width" else "d_model", fontsize=8)
        panel.tick_params(labelsize=7)
    for row in range(rows):
        panels[row * columns].set_ylabel("ms over bare", fontsize=8)
    handles: dict[str, Any] = {}
    for panel in panels:
        found, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    if handles:
        drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return drawn
