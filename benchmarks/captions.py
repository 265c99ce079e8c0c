"""What stands below a table: what went wrong, how far to trust the figures, what they are and where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .columns import ratio_text
from .estimate import level
from .plan import implementation
from .rows import CONTROL, Cells, Row, ratios
from .store import StoredRun

_SLOWED = 1.25  # a wrapped model's own forward that is slower than this is worth a footnote
_BUSY = 0.5  # load for each core from which other work must have been going on


def cautions(rows: Sequence[Row]) -> list[str]:
    """Why figures of this table are not to be trusted as far as they look: its controls."""
    found = []
    bare = next((row.ratio for row in rows if row.backend == CONTROL), None)
    if bare is not None and not bare.covers(1.0):
        found.append(f"the control does not cover 1 ({ratio_text(bare)}): overheads of that size mean nothing here")
    for row in rows:
        if row.same is not None and not row.same.covers(1.0):
            found.append(
                f"not to be trusted to the precision of its intervals: {implementation(row.backend)} under two names "
                f"differs from itself by a factor of {ratio_text(row.same)}; differences of that size mean nothing"
            )
    return found


def notes(run: StoredRun, cells: Cells, rows: Sequence[Row]) -> list[str]:
    """What went wrong, and what the figures do not show."""
    found = []
    for backend, reason in run.facts["arguments"]["skipped"].items():
        found.append(f"{backend} was skipped: {reason}")
    for cell in cells:
        name = cell["backend"] or "the reference"
        if known := cell.get("known"):
            holds = "which the reference shows" if known["holds"] else "which the reference does NOT show"
            found.append(f"known: {known['fact']}, {holds}: {known['found']}")
        if cell["status"] not in ("right", "done"):
            found.append(f"{name}: {cell['status']}: {cell['reason']}")
        elif cell.get("reason"):
            found.append(f"{name}: {cell['reason']}")
        if why := cell.get("no_hooks"):
            found.append(f"{name}: there is no ratio to native hooks, which cannot do this step: {why}")
    for name, times in _slowed(run, cells).items():
        found.append(
            f"{name}: in each process the bare forward took at least {times:.2f} times as long while it was open as "
            "before, which plain hooks do not do to it: it slows the model even where it is not used; the ratio is to "
            "the forward while open"
        )
    if cells[0]["model"] in run.facts["random_models"]:
        found.append(f"{cells[0]['model']} has random weights: its finding says nothing about language")
    if missing := [row.backend for row in rows if row.result == "not run"]:
        found.append(f"the run was stopped before {', '.join(missing)}")
    return list(dict.fromkeys(found))


def _slowed(run: StoredRun, cells: Cells) -> dict[str, float]:
    """How much slower the bare forward is while a backend is open than before it was, where that is no chance: in the
    process in which it was least, and more than in any process of plain hooks, which leave the model as it is."""
    medians = run.samples.groupby("cell")["bare_s"].median()
    times: dict[str, list[float]] = {}
    for cell in cells:
        alone = cell["figures"].get("bare_alone_s")
        if cell["backend"] and alone and cell["id"] in medians:
            times.setdefault(cell["backend"], []).append(float(medians[cell["id"]]) / float(alone))
    chance = [each for name, mine in times.items() if implementation(name) == "hooks" for each in mine]
    return {name: min(mine) for name, mine in times.items() if min(mine) > max([_SLOWED, *chance])}


def legend(run: StoredRun, cells: Cells, rows: Sequence[Row]) -> list[str]:
    """What the figures are and where they come from."""
    return [
        *_of_ratios(rows),
        *_of_controls(run, cells, rows),
        "error: largest, relative to the largest reference figure of its kind. rank: Spearman's correlation with the "
        "reference's ranking.",
        "import: beyond torch, transformers and the task. wrap: opening the backend on the loaded model. first call: "
        "on a model already warm. task: the whole task once. close: until the model is as it was. peak: resident "
        "memory of the process, with the model. GPU: the most memory that was held on one.",
        *machine(run),
    ]


def _of_ratios(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row.ratio is not None]
    if not timed:
        return []
    backends = [row for row in timed if row.backend != CONTROL] or timed
    counts = sorted({row.pairs for row in backends})
    blocks = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    most = max(row.processes for row in timed)
    text = (
        "ratio: one call through the backend over the bare forward, or over native hooks doing the same, on the same "
        f"inputs in the same process, timed in blocks of all of them in a drawn order; {blocks} blocks. "
    )
    if most > 1:
        text += (
            f"Median over the blocks of a process, geometric mean over {most} processes, with Student's 95 % interval "
            "over processes; a ratio is bold where its interval lies below all others. "
        )
    else:
        text += (
            "Median with a 95 % interval over the blocks within one process, so without what differs between them; "
            "none is marked as best. "
        )
        if (fewest := counts[0]) < 6:
            text += f"{fewest} blocks are too few for that: their range is given, which covers {level(fewest):.0%}. "
    return [text + "A wrong result has no time."]


def _of_controls(run: StoredRun, cells: Cells, rows: Sequence[Row]) -> list[str]:
    """What the run cannot tell apart."""
    found = []
    for row in rows:
        if row.same is not None:
            first = next((r for r in rows if r.backend == implementation(row.backend)), row)
            scope = (
                f"over {first.processes} and {row.processes} processes"
                if min(first.processes, row.processes) > 1
                else "over the blocks of one process each: it does not cover what differs between processes"
            )
            found.append(
                f"A/A: {first.backend} under two names, in other processes, differs from itself by a factor of "
                f"{ratio_text(row.same)}, {scope}."
            )
    middles = [float(np.median(blocks)) for blocks in ratios(run, cells, of="hooks_s")]
    if len(middles) > 1:
        found.append(
            f"Native hooks over the bare forward, in each of the {len(middles)} processes of this table: "
            f"{min(middles):.3f} to {max(middles):.3f}; that is what a process, and what else is open in it, make of "
            "one ratio."
        )
    return found


def machine(run: StoredRun) -> list[str]:
    """Where the figures come from."""
    asked, here = run.facts["arguments"], run.facts["environment"]
    versions = here["versions"]
    cores = here["cores"]["physical"] or here["cores"]["logical"]
    load = here["load_average"][0]
    jobs = asked.get("jobs", 1)
    beside = f", {jobs} cells at a time, each on cores of its own" if jobs > 1 else ""
    threads = f"{asked['threads']} thread{'s' if asked['threads'] > 1 else ''} a cell"
    found = []
    if asked.get("warm"):
        found.append(
            "Processes were forked from one that had imported torch and transformers: a look at what works, and "
            "not at what it costs."
        )
    if load > _BUSY * cores:
        found.append(
            f"the machine was busy when the run started (load {load:.1f} on {cores} cores): expect wide intervals"
        )
    if (device := asked.get("device", "cpu")) != "cpu":
        cards = ", ".join(dict.fromkeys(gpu["name"] for gpu in here["gpus"]))
        found.append(f"Models were on {device}{cards and f' ({cards})'}; a call ends when the GPU has done its work.")
    found.append(
        f"{here['cpu']}, {cores} cores, {threads}{beside}, load {load:.1f} at the "
        f"start; torch {versions['torch']}, transformers {versions['transformers']}; {asked['dtype']}, "
        f"{asked['attn_implementation']} attention."
    )
    return found
