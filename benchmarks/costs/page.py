"""The page of the study, and what the README says of it: functions of costs.json alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from crosslens.benchmarks.columns import short
from crosslens.benchmarks.estimate import Estimate, median_ratio
from crosslens.benchmarks.fresh import Kept

Found = Sequence[Mapping[str, Any]]
"""What each process of a part found, of one tensor, training or map: with `samples`, way -> seconds."""

SAME, COMGRA = "Recorder, comgra's figures", "comgra, kpis"
_SWEPT = {"resid_post": ("the residual stream", "positions"), "attn.z": ("the heads", "heads")}
_MIB = 2**20


def of_part(kept: Kept, part: str) -> list[Mapping[str, Any]]:
    """What the processes of a part found, without those that ended with an error."""
    return [each["found"] for each in kept["processes"] if each["job"]["part"] == part and "error" not in each["found"]]


def by(found: Iterable[Mapping[str, Any]], several: str, name: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Of what each process found of several things: the name of a thing -> what each found of it."""
    things: dict[Any, list[Mapping[str, Any]]] = {}
    for process in found:
        for each in process[several]:
            things.setdefault(each[name], []).append(each)
    return things


def ratio(found: Found, above: str, below: str) -> Estimate:
    """Of one way's times to another's, round by round."""
    return median_ratio([np.array(each["samples"][above]) / np.array(each["samples"][below]) for each in found])


def middle(found: Found, way: str) -> float:
    """Seconds: the median over processes of their medians."""
    return float(np.median([np.median(each["samples"][way]) for each in found]))


def fastest_loop(found: Found) -> str:
    """Of a map, the way that is no sweep and takes least."""
    loops: list[str] = [way for way in found[0]["samples"] if way.startswith("loop")]
    return min(loops, key=lambda way: middle(found, way))


def shown(found: Found, above: str, below: str) -> str:
    """Such as `2.51 [2.30, 2.72]`; one sample has no interval."""
    value = ratio(found, above, below)
    if len(found) == 1 and len(found[0]["samples"][above]) == 1:
        return short(value.value)
    return f"{short(value.value)} [{short(value.low)}, {short(value.high)}]"


def markdown(kept: Kept) -> str:
    """The page.

    Args:
        kept: environment, settings, and processes: each a job and what it found.
    """
    blocks = ["# What crosslens' own work costs", _conditions(kept)]
    for part, make in _SECTIONS.items():
        if found := of_part(kept, part):
            blocks += make(found, next(each["job"] for each in kept["processes"] if each["job"]["part"] == part))
    if wrong := _wrong(kept):
        blocks += ["## What is not here", "\n".join(f"- {each}" for each in wrong)]
    return "\n\n".join(blocks) + "\n"


def _conditions(kept: Kept) -> str:
    machine = kept["environment"]
    counts = sorted({1 + each["job"]["repeat"] for each in kept["processes"] if each["job"]["rounds"]})
    several = max(counts, default=1) > 1
    covers = (
        f"A ratio is the geometric mean over up to {max(counts)} processes of the median of their rounds, with "
        "Student's 95 % interval over processes"
        if several
        else "A ratio is the median over the rounds of one process; the interval is between order statistics, with "
        "fewer than six rounds their whole range, and says nothing about how processes differ"
    )
    return (
        "`python -m crosslens.benchmarks.costs`: CPU time of one thread, ways of doing the same in turns, in an order "
        f"drawn anew each round, each part in processes of its own. {covers}. Ways that give figures are held to "
        f"the same ones before they are timed. {machine['cpu']}, Python {machine['python']}, torch "
        f"{machine['versions']['torch']}. Load when a process began: {_load(kept)}."
    )


def _load(kept: Kept) -> str:
    loads = sorted(each["load"] for each in kept["processes"])
    return f"{loads[0]:.1f} to {loads[-1]:.1f}" if loads else "none did"


def _kpi(found: Found, job: Mapping[str, Any]) -> list[str]:
    rows = [["MB", "one pass, ms", "separate / one pass", "one pass / copy", "one pass / new copy"]]
    for size, each in by(found, "sizes", "megabytes").items():
        pairs = (("separate", "one pass"), ("one pass", "copy"), ("one pass", "new copy"))
        rows.append([f"{size:g}", short(1e3 * middle(each, "one pass")), *(shown(each, *pair) for pair in pairs)])
    return [
        "## Key figures of a tensor",
        f"All {found[0]['kpis']} of a float32 tensor in one pass, beside a PyTorch reduction (or two) for each, and "
        "beside a copy of the tensor, into memory that is there or that is new.",
        _grid(rows, 1),
    ]


def _compare(found: Found, job: Mapping[str, Any]) -> list[str]:
    first = found[0]
    rows = [["way", "s", "/ bare"]]
    rows += [[way, short(middle(found, way)), shown(found, way, "bare")] for way in first["samples"]]
    return [
        "## Comparing",
        f"`compare` of {first['texts']} stories of {first['tokens'][0]} to {first['tokens'][1]} tokens on "
        f"`{job['model']}`, {first['kinds']} kinds of site x {first['blocks']} blocks, through plain hooks; all "
        "forwards bare; and with every site watched by a function that does nothing.",
        _grid(rows, 1),
    ]


def _memory(found: Found, job: Mapping[str, Any]) -> list[str]:
    rows = [["examples", "MiB"], *([f"{each['examples']:,}", f"{each['bytes'] / _MIB:.0f}"] for each in found)]
    return [
        "## Memory of comparing",
        f"Peak resident memory of a process that compares examples from an iterator, on `{job['model']}`, the residual "
        "stream of every block with its directions to tokens.",
        _grid(rows, 0),
    ]


def _recorder(found: Found, job: Mapping[str, Any]) -> list[str]:
    rows = [["training", "way", "ms a step", "/ bare", "bytes a step"]]
    for name, each in by(found, "loops", "name").items():
        for way in each[0]["samples"]:
            sizes = [one["bytes"][way] for one in each if way in one["bytes"]]
            size = f"{np.median(sizes):,.0f}" if sizes else ""
            rows.append([name, way, short(1e3 * middle(each, way)), shown(each, way, "bare"), size])
    return [
        "## Recording a training",
        "Every step: the outputs of all layers, their gradients, all parameters and theirs. comgra is called as its "
        "documentation teaches, in `kpis` mode without single samples, without singular values, and records the same "
        f"figures of the same tensors. A round is {job['steps']} steps, of comgra {job['comgra_steps']}.",
        _grid(rows, 2),
    ]


def _sweep(found: Found, job: Mapping[str, Any]) -> list[str]:
    rows = [["map", "way", "ms an edit", "times faster than the fastest loop", "largest difference"]]
    for local, each in by(found, "maps", "local").items():
        first, best = each[0], fastest_loop(each)
        label = f"{local}, {first['layers']} x {first['inner']}"
        for way in sorted(first["samples"], key=lambda way: middle(each, way)):
            far = max(one["differences"][way] for one in each)
            rows.append([label, way, short(1e3 * middle(each, way)), shown(each, best, way), f"{far:.1e}"])
    return [
        "## A patching map",
        f"The maps of the task `ioi` on `{job['model']}`: what the clean prompt has in every block's residual stream "
        "at every position, and in every head, put into the corrupted one. A sweep is timed whole, a loop over "
        f"{job['sample']} edits drawn anew each round. *directly*: the library's own loop, without crosslens. A "
        "difference is of logits, from the first loop.",
        _grid(rows, 2),
    ]


_SECTIONS: Mapping[str, Callable[[Found, Mapping[str, Any]], list[str]]] = {
    "kpi": _kpi, "compare": _compare, "memory": _memory, "recorder": _recorder, "sweep": _sweep,
}  # fmt: skip


def _wrong(kept: Kept) -> list[str]:
    found = [f"{name}: {why}" for name, why in kept["settings"]["left_out"].items()]
    measured = {each["job"]["part"] for each in kept["processes"]}
    found += [f"{part}: not measured" for part in _SECTIONS if part not in measured]
    found += [
        f"{each['job']['part']}, process {each['job']['repeat'] + 1}: {each['found']['error']}"
        for each in kept["processes"]
        if "error" in each["found"]
    ]
    return found


def sentence(kept: Kept) -> str:
    """What the README says of `sweep`; empty where it was not measured."""
    maps = by(of_part(kept, "sweep"), "maps", "local")
    if not maps:
        return ""
    parts = []
    for local, each in maps.items():
        (what, inner), loop = _SWEPT[local], fastest_loop(each)
        ours, fastest = (short(1e3 * middle(each, way)) for way in ("sweep, hooks", loop))
        parts.append(
            f"{ours} ms an edit for {what} ({each[0]['layers']} layers x {each[0]['inner']} {inner}), where the "
            f"fastest loop of any library takes {fastest}: {shown(each, loop, 'sweep, hooks')} times faster"
        )
    far = max(one["differences"]["sweep, hooks"] for each in maps.values() for one in each)
    same = f"within {far:.0e}" if far else "exactly"
    return (
        f"`sweep` of the `ioi` maps through plain hooks takes {'; and '.join(parts)}. Its numbers are those of a "
        f"forward an edit, {same}, for a sample of the edits.\n"
    )


def summary(kept: Kept) -> str:
    """The README's table: what each part cost, in short."""
    rows = [["what", "cost"]]
    pieces, compared, memory = (of_part(kept, part) for part in ("kpi", "compare", "memory"))
    if pieces:
        sizes = by(pieces, "sizes", "megabytes")
        faster, copies = (
            ", ".join(f"{size:g} MB: {short(ratio(each, *pair).value)}" for size, each in sizes.items())
            for pair in (("separate", "one pass"), ("one pass", "copy"))
        )
        what = f"all {pieces[0]['kpis']} key figures of a tensor in one pass"
        rows.append([what, f"{faster} times faster than a PyTorch reduction each"])
        rows.append(["the same beside a plain copy of the tensor", f"{copies} times the copy"])
    if compared:
        first = compared[0]
        what = f"`compare`, {first['kinds']} kinds of site x {first['blocks']} blocks, {first['texts']} stories"
        rows.append([what, f"{shown(compared, 'compare', 'bare')} of the bare forwards"])
    if memory:
        peaks = {each["examples"]: each["bytes"] / _MIB for each in memory}
        ends = (f"{peaks[number]:.0f} MiB for {number:,} examples" for number in sorted({min(peaks), max(peaks)}))
        rows.append(["memory of `compare`", ", ".join(ends)])
    for name, each in by(of_part(kept, "recorder"), "loops", "name").items():
        rows.append([f"`Recorder`, every step of a {name}", _recorded(each, SAME)])
        if COMGRA in each[0]["samples"]:
            rows.append(["comgra, the same figures", _recorded(each, COMGRA)])
    return _grid(rows, 2) + "\n" if len(rows) > 1 else ""


def _recorded(found: Found, way: str) -> str:
    size = np.median([each["bytes"][way] for each in found])
    return f"{shown(found, way, 'bare')} of the bare step, {size:,.0f} bytes a step"


def _grid(rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table; so many columns stand to the left."""
    head, *others = ["| " + " | ".join(row) + " |" for row in rows]
    marks = ["---"] * left + ["--:"] * (len(rows[0]) - left)
    return "\n".join([head, "|" + "|".join(marks) + "|", *others])
