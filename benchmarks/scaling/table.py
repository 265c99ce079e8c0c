"""The page and the LaTeX table: pure functions of what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crosslens.benchmarks.estimate import Estimate
from crosslens.benchmarks.render import escape_latex

from .axes import AXES
from .fit import Line
from .reading import backends, calls_read, closing, faults, grown, line, wrapping

_HEAD = """# How costs grow

Printed by `python -m crosslens.benchmarks.scaling`. Seeded llamas of float32 are made for it, and one thing grows at a
time. At each point the bare forward, plain PyTorch hooks and the backend through the Inspector are called once in each
block, in an order drawn anew; a cost is the difference to the bare forward of the same block. What a backend gives is
held to plain hooks before and after the timed calls; what is wrong has no time. A line is fitted to the medians of the
points (Theil and Sen): what a call costs whatever its size, and what each further site, block or token costs.

![milliseconds over the bare forward, by what grows](scaling.svg)"""
_HOOKS = "plain hooks (native)"


def markdown(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [_HEAD, _setting(kept)]
    names = backends(kept)
    for axis in kept["settings"]["axes"]:
        parts += _axis(kept, axis, names)
    parts += _wrapping(kept, names) + _growth(kept) + _faults(kept)
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(kept: Mapping[str, Any]) -> str:
    """Fixed milliseconds a call, and microseconds by site, block and edit; fits a column. Intervals are on the page."""
    columns = [axis for axis in ("sites", "depth", "edits") if axis in kept["settings"]["axes"]]
    head = " & ".join(["", "ms a call", *(rf"\textmu s/{AXES[axis].unit}" for axis in columns)])
    lines = [rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}", r"\toprule", head + r" \\", r"\midrule"]
    for backend in backends(kept):
        found = {axis: line(kept, backend, axis) for axis in columns}
        first = found.get("sites")
        row = [
            escape_latex(backend.replace("transformer_lens", "TransformerLens")),
            _pair(first.fixed if first else None),
        ]
        lines.append(" & ".join([*row, *(_pair(_micro(f)) for f in found.values())]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _setting(kept: Mapping[str, Any]) -> str:
    settings, machine = kept["settings"], kept["environment"]
    several = settings["processes"] > 1
    covers = (
        f"A process has one line; figures are means over {settings['processes']} processes with Student's 95 % interval"
        if several
        else "There was one process; 95 % intervals are the bootstrap's over its samples and say nothing about how "
        "processes differ"
    )
    gpu = f"The GPU is {settings['gpu']}." if settings["gpu"] else "There was no GPU: its column says so."
    return (
        f"{machine['cpu']}, {machine['cores']['logical']} core(s), {settings['threads']} thread(s), Python "
        f"{machine['python']}, torch {machine['versions']['torch']}; {settings['samples']} samples a point. Load when "
        f"it began: {machine['load_average'][0]:.2f}. {covers}. {gpu}"
    )


def _axis(kept: Mapping[str, Any], axis: str, names: Sequence[str]) -> list[str]:
    about, values = AXES[axis], kept["settings"]["axes"][axis]
    rows = [["backend", "fixed, ms a call [95 %]", f"marginal, us by {about.unit} [95 %]", "GPU, marginal [95 %]"]]
    first = next((name for name in ("hooks", *names) if name in names), None)
    lines = {name: line(kept, name, axis) for name in names}
    if first is not None:
        lines = {"bare (the forward itself)": line(kept, first, axis, "bare"),
                 _HOOKS: line(kept, first, axis, "native"), **lines}  # fmt: skip
    gpu = backends(kept, "cuda")
    for name, found in lines.items():
        if found is not None:
            device = line(kept, name, axis, device="cuda") if name in gpu else None
            beside = _shown(_micro(device)) or "not measured"
            rows.append([name, _shown(found.fixed), _shown(_micro(found)), beside])
    spoken = ", ".join(map(str, values))
    note = "" if first in (None, "hooks") else f" The first two lines are from the processes of {first}."
    return [f"## By {axis}", f"{about.also}; {spoken}.{note}".capitalize(), _grid(rows)] if len(rows) > 1 else []


def _wrapping(kept: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    rows = [["backend", "fixed, ms [95 %]", "us by block [95 %]", "us by million parameters [95 %]", "closing, ms"]]
    for name in names:
        depth, width, shut = wrapping(kept, name, "depth"), wrapping(kept, name, "width"), closing(kept, name)
        rows.append(
            [name, _shown(depth.fixed if depth else None), _shown(_micro(depth)),
             _shown(_micro(width)), "" if shut is None else f"{shut:.3g}"]
        )  # fmt: skip
    text = "What it takes to open an Inspector on a model, by its depth and by its parameters (along the width)."
    return ["## Wrapping", text, _grid(rows)] if len(rows) > 1 else []


def _growth(kept: Mapping[str, Any]) -> list[str]:
    rows = [
        ["backend", "bytes a call [95 %]", "objects a call [95 %]", "device bytes a call [95 %]", "calls", "verdict"]
    ]
    for name in dict.fromkeys(process["job"]["backend"] for process in kept["processes"]):
        held, objects, device = (grown(kept, name, what) for what in ("bytes", "objects", "device_bytes"))
        if held is not None and objects is not None:
            grows = [what for what, e in (("memory", held), ("objects", objects)) if e.low > 0]
            verdict = f"{' and '.join(grows)} grow{'s' if grows == ['memory'] else ''}" if grows else "no growth shown"
            rows.append(
                [
                    name,
                    _shown(held),
                    _shown(objects),
                    _shown(device) or "not measured",
                    str(calls_read(kept, name)),
                    verdict,
                ]
            )
    text = (
        "Resident memory and Python's objects over calls that record every block, in one process; intervals are the "
        "bootstrap's over the increments."
    )
    return ["## Memory", text, _grid(rows)] if len(rows) > 1 else []


def _faults(kept: Mapping[str, Any]) -> list[str]:
    lines = [f"- {text}{': ' if places else ''}{', '.join(places)}" for text, places in faults(kept).items()]
    return ["## What has no time", "\n".join(lines)] if lines else []


def _micro(found: Line | None) -> Estimate | None:
    """The marginal cost in microseconds."""
    each = found.marginal if found else None
    return each and Estimate(1e3 * each.value, 1e3 * each.low, 1e3 * each.high)


def _shown(each: Estimate | None) -> str:
    return "" if each is None else f"{_three(each.value)} [{_three(each.low)}, {_three(each.high)}]"


def _three(value: float) -> str:
    """Three digits, without an exponent where it can be."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _pair(each: Estimate | None) -> str:
    """A value and the wider half of its interval, to two digits of that half."""
    if each is None:
        return "--"
    half = max(each.high - each.value, each.value - each.low)
    places = 1 - math.floor(math.log10(half)) if half > 0 else 3
    value, half = round(each.value, places), round(half, places)
    return rf"${value:.{max(0, places)}f}\pm{half:.{max(0, places)}f}$"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(rows[0]) - 1), *lines[1:]])
