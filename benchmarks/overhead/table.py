"""The page and the LaTeX table: pure functions of what was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crosslens.benchmarks.estimate import Estimate, level
from crosslens.benchmarks.render import escape_latex

from .operations import OPERATIONS
from .reading import Cell, cells, controls, left_out, slowed, together

_HEAD = """# What each operation costs

Printed by `python -m crosslens.benchmarks.overhead`. A process measures one backend on every operation. In each block
of an operation it calls, once and in an order drawn anew, the bare model, plain PyTorch hooks, the backend through the
Inspector, and the library used directly as its documentation teaches (the programs of `idioms` and `direct`, with
their set-up done once). Garbage is not collected inside a block. Bare is one forward without gradients; for `replace`
two; for `gradients` and `attribute` a forward and a backward to the embeddings; for `generate` the model's own
generation. Results are held to those of plain hooks before and after the timed calls, to {tolerance:g} of the largest
value, tokens exactly: what is wrong has no time. An edit that changes its result by less than ten times that is not
measured. Price is the Inspector to the library directly, for the same result.

![ratio to bare of each operation, by backend](overhead.svg)"""

_SHORT = {
    "capture_one": "one site", "capture_residuals": "residuals", "capture_everything": "everything", "zero": "edit",
    "gradients": "gradient", "generate": "generate",
}  # fmt: skip
"""Columns of the LaTeX table."""


def markdown(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    from .ways import TOLERANCE

    every = cells(kept)
    parts = [_HEAD.format(tolerance=TOLERANCE), _setting(kept), _control(kept), _prices(every)]
    for shape in kept["settings"]["shapes"]:
        title = f"## {shape['name']}: {shape['batch']} x {shape['tokens']} tokens"
        parts += [title, *_tables([cell for cell in every if cell.shape == shape["name"]])]
    parts += [_without(every), _left_out(kept)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(kept: Mapping[str, Any]) -> str:
    """Ratios to bare on the first shape, by backend; fits a column. Digits in brackets: the interval's wider side."""
    first = kept["settings"]["shapes"][0]["name"]
    every = [cell for cell in cells(kept) if cell.shape == first and cell.device == "cpu"]
    columns = [name for name in _SHORT if any(cell.operation == name for cell in every)]
    head = " & ".join(["", *(_SHORT[name] for name in columns)])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", head + r" \\", r"\midrule"]
    for backend in dict.fromkeys(cell.backend for cell in every):
        found = {cell.operation: cell.ratio("through", "bare") for cell in every if cell.backend == backend}
        if any(found.get(name) for name in columns):
            row = [escape_latex(backend.replace("transformer_lens", "TransformerLens"))]
            lines.append(" & ".join([*row, *(_brief(found.get(name)) for name in columns)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def control_note(kept: Mapping[str, Any]) -> str:
    """What captions say of the control: the same backend under two names."""
    found = controls(kept)
    if not found:
        return "There is no control: the backend `hooks` was not measured."
    off = [f"{operation} ({shape})" for (shape, operation), ratio in found.items() if not ratio.covers(1.0)]
    text = f"Of {len(found)} intervals of a backend against itself under another name, {len(off)} exclude 1"
    usual = 0.05 * len(found)
    if kept["settings"]["processes"] == 1:  # few blocks have no interval at 95 %
        of_hooks = (cell for cell in cells(kept) if (cell.shape, cell.operation) in found and cell.backend == "hooks")
        usual = sum(1 - level(cell.samples("again")) for cell in of_hooks if cell.device == "cpu")
    if not off:
        return text + "."
    return f"{text} ({', '.join(off)}); {usual:.1f} are to be expected. Differences as small as theirs say nothing."


def _setting(kept: Mapping[str, Any]) -> str:
    settings, machine = kept["settings"], kept["environment"]
    processes = settings["processes"]
    if processes > 1:
        covers = (
            f"A ratio is the geometric mean, over {processes} processes, of each one's median over its blocks; the "
            "95 % interval is Student's over processes"
        )
    else:
        covers = (
            "A ratio is the median over the blocks of one process; the interval is between order statistics, with "
            "fewer than six blocks their whole range, and says nothing about how processes differ"
        )
    devices = settings["devices"]
    gpu = (
        f"The GPU is {settings['gpu']}; its times end when it has finished, and its memory is what a call allocates at "
        "its peak. On it, the libraries' own programs are not run: they are for the CPU."
        if "cuda" in devices
        else "There was no GPU: its column says so."
    )
    models = f"`{settings['model']}`, float32, {settings['threads']} thread(s)"
    return (
        f"{models}, {machine['cpu']}, {machine['cores']['logical']} core(s), Python {machine['python']}, torch "
        f"{machine['versions']['torch']}. Load when it began: {machine['load_average'][0]:.2f}. {covers}. {gpu} Sweeps "
        "and recordings of training have a study of their own, `benchmarks.costs`."
    )


def _control(kept: Mapping[str, Any]) -> str:
    found = controls(kept)
    parts = ["## The control", control_note(kept)]
    if found:
        shapes = list(dict.fromkeys(shape for shape, _ in found))
        operations = list(dict.fromkeys(operation for _, operation in found))
        rows = [["hooks, again / hooks", *shapes]]
        rows += [[name, *(_shown(found.get((shape, name))) for shape in shapes)] for name in operations]
        of_hooks = [cell for cell in cells(kept) if (cell.shape, cell.operation) in found and cell.backend == "hooks"]
        whole = (together([c for c in of_hooks if c.shape == shape], "again", "through") for shape in shapes)
        rows.append(["all, geometric mean", *map(_shown, whole)])
        parts.append(_grid(rows))
    beside = [[backend, f"{value:.2f}"] for backend, value in slowed(kept).items()]
    if beside:
        parts.append(
            "A library may slow the whole process while it is open, and with it the bare forward that it is held to. "
            "The bare forward beside each backend, to that before it was opened:"
        )
        parts.append(_grid([["backend", "bare beside it / bare before"], *beside]))
    return "\n\n".join(parts)


def _prices(every: Sequence[Cell]) -> str:
    """The interface's price by backend, over the operations that each has both ways, and over those that all have."""
    some = [cell for cell in every if cell.device == "cpu"]
    by = {name: [c for c in some if c.backend == name] for name in dict.fromkeys(c.backend for c in some)}
    priced = {name: [c for c in found if c.ratio("through", "directly")] for name, found in by.items()}
    full = {name: found for name, found in priced.items() if len(found) > 1}
    keys = [{(c.shape, c.operation) for c in found} for found in full.values()]
    common = set.intersection(*keys) if keys else set()
    rows = [["backend", "price, where it has both", "operations", "price, where all have both", "operations"]]
    for name, found in priced.items():
        if found:
            shared = [c for c in found if (c.shape, c.operation) in common]
            of = f"{len(found)} of {len(by[name])}"
            both = together(shared, "through", "directly") if len(shared) == len(common) else None
            rows.append(
                [
                    name,
                    _shown(together(found, "through", "directly")),
                    of,
                    _shown(both),
                    str(len(common) if both else ""),
                ]
            )
    if len(rows) == 1:
        return ""
    note = "Geometric means of the Inspector's time to the library's own, over operations and shapes."
    return "\n\n".join(["## The price of the common interface", note, _grid(rows)])


def _tables(some: Sequence[Cell]) -> Iterable[str]:
    for operation in dict.fromkeys(cell.operation for cell in some):
        here = [cell for cell in some if cell.operation == operation]
        rows = [["backend", "to bare [95 %]", "to plain hooks [95 %]", "ms over bare", "directly, to bare [95 %]",
                 "price [95 %]", "samples", "GPU, to bare [95 %]", "GPU MB"]]  # fmt: skip
        for cell in sorted((c for c in here if c.device == "cpu"), key=_order):
            if cell.ratio("through", "bare") or cell.ratio("directly", "bare"):
                gpu = next((c for c in here if c.device != "cpu" and c.backend == cell.backend), None)
                rows.append([cell.backend, *_figures(cell), *_on_gpu(gpu)])
        if len(rows) > 1:
            note = " Milliseconds are those of a token." if operation == "generate" else ""
            yield f"**{operation}**: {OPERATIONS[operation].question}.{note}"
            yield _grid(rows)


def _order(cell: Cell) -> float:
    ratio = cell.ratio("through", "bare")
    return ratio.value if ratio else float("inf")


def _figures(cell: Cell) -> list[str]:
    over = cell.over("through")
    return [
        _shown(cell.ratio("through", "bare")) or cell.why("through")[0],
        _shown(cell.ratio("through", "native")),
        "" if over is None else f"{over:+.2f}",
        _shown(cell.ratio("directly", "bare")) or cell.why("directly")[0].replace("no program", ""),
        _shown(cell.ratio("through", "directly")),
        str(cell.samples("through") or cell.samples("directly")),
    ]


def _on_gpu(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["not measured", "not measured"]
    memory = cell.device_bytes("through")
    return [_shown(cell.ratio("through", "bare")) or cell.why("through")[0],
            "" if memory is None else f"{memory / 1e6:.1f}"]  # fmt: skip


def _without(every: Sequence[Cell]) -> str:
    """Why ways have no time, unless the backend or library does not do such a thing at all."""
    found: dict[str, list[str]] = {}
    for cell in every:
        for way, said in (("through", "through the Inspector"), ("directly", "directly")):
            status, reason = cell.why(way)
            if status in ("wrong", "failed", "slow", "vacuous"):
                line = f"{cell.backend} {said}: {status}, {reason}"
                found.setdefault(line, []).append(f"{cell.operation} ({cell.shape})")
    lines = [f"- {line}: {', '.join(dict.fromkeys(places))}" for line, places in found.items()]
    return "## What has no time\n\n" + "\n".join(lines) if lines else ""


def _left_out(kept: Mapping[str, Any]) -> str:
    lines = [f"- {backend}: {why}" for backend, why in left_out(kept).items()]
    return "## Left out\n\n" + "\n".join(lines) if lines else ""


def _shown(ratio: Estimate | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio.high < 1e4 else f"{ratio.value:.3g} [wide]"


def _brief(ratio: Estimate | None) -> str:
    """Such as 1.04(3): the last digits' uncertainty is the wider side of the interval."""
    if ratio is None:
        return "--"
    side = max(ratio.high - ratio.value, ratio.value - ratio.low)
    digits = 2 if side < 0.995 else 1 if side < 9.95 else 0
    uncertain = side * 10**digits if digits else side
    if not uncertain < 1e6:
        return f"{ratio.value:.2f}(wide)"
    return f"{ratio.value:.{digits}f}({max(1, round(uncertain)) if digits else round(side)})"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "--:|" * (len(rows[0]) - 1), *lines[1:]])
