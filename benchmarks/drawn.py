"""Figures as files that are the same whenever they are drawn again from the same data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from crosslens.tasks.parts import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, without the date and with names that do not change.

    Raises:
        OSError: it cannot be written.
    """
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    replace_file(path, out.getvalue())
