"""What a run found of one backend on one task and model: its cells, of one or several processes, as a row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .estimate import Estimate, median_ratio, quotient
from .plan import AGAIN, implementation
from .store import StoredRun

Cells = Sequence[dict[str, Any]]

CONTROL = "bare (control)"
# Of several processes, the outcome that a reader must know of comes first.
_WORST_FIRST = (
    "wrong",
    "crashed",
    "out-of-memory",
    "timeout",
    "failed",
    "vacuous",
    "not-installed",
    "unsupported",
    "right",
)


@dataclass(frozen=True)
class Row:
    """One backend on one task and model; a figure that was not measured, or is withheld, is None.

    Attributes:
        control: whether it is there to say how far the others are to be trusted.
        processes: how many the figures are of.
        pairs: blocks, in all of them.
        error: largest error of any figure, relative to the largest reference figure of its kind.
        rank: Spearman's correlation with the reference's ranking.
        ratio: of a call through the backend to the bare forward in the same block.
        to_hooks: the same to native hooks doing the same step in the same block.
        same: of a backend under its second name to itself under its first, in other processes.
        import_s, wrap_s, first_call_s, task_s, close_s: medians over processes, seconds.
        peak_mb, rise_mb: largest resident memory; largest rise over the loaded model. MB are 10^6 bytes.
        device_mb: most memory held on a GPU.
    """

    backend: str
    version: str | None
    result: str
    control: bool = False
    processes: int = 0
    pairs: int = 0
    error: float | None = None
    rank: float | None = None
    ratio: Estimate | None = None
    to_hooks: Estimate | None = None
    same: Estimate | None = None
    import_s: float | None = None
    wrap_s: float | None = None
    first_call_s: float | None = None
    task_s: float | None = None
    close_s: float | None = None
    peak_mb: float | None = None
    rise_mb: float | None = None
    device_mb: float | None = None


def bare_row(run: StoredRun, reference: dict[str, Any]) -> Row:
    """The bare forward, timed against itself in the reference's process."""
    found = ratios(run, [reference])
    return Row(
        CONTROL,
        run.facts["environment"]["versions"]["torch"],
        "",
        control=True,
        processes=1,
        pairs=sum(map(len, found)),
        ratio=median_ratio(found) if found else None,
    )


def backend_row(run: StoredRun, name: str, cells: Cells) -> Row:
    """A backend's row from the cells of its task and model, of which others' are left out."""
    mine = [cell for cell in cells if cell["backend"] == name]
    if not mine:
        return Row(name, None, "not run", control=name.endswith(AGAIN))
    worst = outcome(mine)
    count = sum(cell["status"] == worst for cell in mine)
    right = worst == "right"
    to_bare, to_hooks = (ratios(run, mine, base) if right else [] for base in ("bare_s", "hooks_s"))
    scores = [cell["score"] for cell in mine if "score" in cell]
    return Row(
        name,
        next((cell["version"] for cell in mine if cell.get("version")), None),
        worst if count == len(mine) else f"{worst} ({count} of {len(mine)})",
        control=name.endswith(AGAIN),
        processes=len(mine),
        pairs=sum(map(len, to_bare)),
        error=max((float(score["max_rel_error"]) for score in scores), default=None, key=_nan_last),
        rank=min((float(score["rank_agreement"]) for score in scores), default=None, key=_nan_first),
        ratio=median_ratio(to_bare) if to_bare else None,
        to_hooks=median_ratio(to_hooks) if to_hooks else None,
        same=_same(run, name, cells) if right else None,
        import_s=middle(mine, "import_s"),
        wrap_s=middle(mine, "wrap_s"),
        # A wrong result has no time.
        first_call_s=middle(mine, "first_call_s") if right else None,
        task_s=middle(mine, "task_s") if right else None,
        close_s=middle(mine, "close_s"),
        peak_mb=_megabytes(mine, "peak_bytes"),
        rise_mb=_megabytes(mine, "rise_bytes"),
        device_mb=_megabytes(mine, "device_peak_bytes"),
    )


def outcome(cells: Cells) -> str:
    """Of the processes of one backend on one task and model, the outcome that a reader must know of."""
    return str(min((cell["status"] for cell in cells), key=_WORST_FIRST.index))


def ratios(run: StoredRun, cells: Cells, base: str = "bare_s", of: str = "step_s") -> list[NDArray[np.float64]]:
    """For each cell's process in which both were timed, the ratio of `of` to `base` in each block."""
    groups = []
    for cell in cells:
        mine = run.samples[run.samples["cell"] == cell["id"]]
        found = np.asarray(mine[of] / mine[base], dtype=np.float64)
        if len(found) and not np.isnan(found).any():
            groups.append(found)
    return groups


def _same(run: StoredRun, name: str, cells: Cells) -> Estimate | None:
    """A backend under its second name over itself under its first, each over the bare forward in its own blocks."""
    if not name.endswith(AGAIN):
        return None
    first = [cell for cell in cells if cell["backend"] == implementation(name)]
    if not first or outcome(first) != "right":
        return None
    sides = [ratios(run, [cell for cell in cells if cell["backend"] == who]) for who in (name, implementation(name))]
    return quotient(*sides) if all(sides) else None


def middle(cells: Cells, name: str) -> float | None:
    """The median of a figure over processes."""
    values = _figures(cells, name)
    return statistics.median(values) if values else None


def _megabytes(cells: Cells, name: str) -> float | None:
    values = _figures(cells, name)
    return max(values) / 1e6 if values else None


def _figures(cells: Cells, name: str) -> list[float]:
    return [float(cell["figures"][name]) for cell in cells if cell["figures"].get(name) is not None]


def _nan_last(value: float) -> float:
    return float("inf") if value != value else value


def _nan_first(value: float) -> float:
    return float("-inf") if value != value else value
