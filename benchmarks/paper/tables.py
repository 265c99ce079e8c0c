"""Every table of the paper, by the name of its file; of a study that is not there, none.

A table is a pure function of what was measured, stands alone, and says in its caption what was run, on what, and how
often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from crosslens.adapters import CAPABILITIES

from .. import matrix
from ..known_truth_tables import NULLS, as_table, averages, wilson
from ..known_truth_ways import LEVEL, WAYS
from ..render import escape_latex
from ..tables import CONTROL, tables
from . import others
from . import tables_use as use
from .latex import counted, floating, listed, name, significant, tabular
from .sources import Results, reading


def features(results: Results) -> str:
    """What each backend can do, as it came out of the conformance kit."""
    passed = sum(each.outcomes.passed for each in results.backends if each.outcomes)
    failed = sum(each.outcomes.xfailed for each in results.backends if each.outcomes)
    caption = (
        rf"\textbf{{What each backend can do,}} as it came out of the conformance kit: {len(CAPABILITIES)} "
        f"capabilities, {passed:,} checks of {len(results.backends)} backends that passed and {failed:,} that must "
        "fail and did, each run once, deterministically, on tiny random models of every family in float64, float32 "
        r"and bfloat16 on the CPU. $\bullet$ every check that needs it passed; $\bullet^*$ the same, but for some "
        r"families; $\circ$ the library could, the adapter does not yet; $\times$ the library cannot; -- it makes no "
        "sense there."
    )
    body = matrix.latex(results.backends).partition("\n%")[0]
    return floating("features", caption, body, size="scriptsize", gap=2)


def tasks(results: Results) -> list[str]:
    """Every task of the run: whether it is right, and what a call costs; as many tables as have room."""
    found, asked = tables(results.run), results.run.facts["arguments"]
    several = len({table.task for table in found}) < len(found)
    pairs = [row.pairs for table in found for row in table.rows if row.pairs and not row.control]
    models = listed(escape_latex(each) for each in dict.fromkeys(table.model for table in found))
    extent = f"{min(pairs)} to {max(pairs)} pairs" if pairs else "no pairs"
    over = (
        rf"median with its 95\,\% interval, from {extent} in the one process of a cell"
        if asked["repeats"] == 1
        else rf"median of a process, geometric mean over {asked['repeats']} processes and Student's 95\,\% interval "
        f"over them, from {extent} a cell"
    )
    jobs = asked.get("jobs", 1)
    caption = (
        f"A call through the backend over the bare forward on the same inputs, timed alternately: {over}; beside it "
        "the largest error relative to the largest figure of a reference that depends on no backend. A/A is the bare "
        f"forward against itself, in one process. A wrong result has no time. On {models}, float32, {results.machine}, "
        f"{counted(asked['threads'], 'thread', 's')} a cell, {counted(jobs, 'cell', 's')} at a time."
    )
    parts = [
        (asked["backends"][i : i + _ACROSS], found[j : j + _DOWN])
        for i in range(0, len(asked["backends"]), _ACROSS)
        for j in range(0, len(found), _DOWN)
    ]
    made = []
    for number, (backends, some) in enumerate(parts):
        heads = ["task", "A/A", *(part for each in backends for part in (name(each), "error"))]
        body = []
        for table in some:
            rows = {row.backend: row for row in table.rows}
            cells = [escape_latex(f"{table.task}, {table.model}" if several else table.task), _ratio(rows.get(CONTROL))]
            for each in backends:
                row = rows.get(each)
                cells += [_ratio(row), "" if row is None or row.error is None else significant(row.error, 1)]
            body.append(cells)
        title = rf"\textbf{{The tasks{', continued' if number else ''}.}} "
        made.append(
            floating(f"tasks{number or ''}", title + caption, tabular("ll" + "lr" * len(backends), heads, body),
                     wide=True, size="scriptsize")
        )  # fmt: skip
    return made


_ACROSS, _DOWN = 4, 55
"""Backends and tasks of one table: what fits a page."""


def _ratio(row: Any) -> str:
    """Such as `1.04 [1.02, 1.05]`; what else came of it where there is no time."""
    if row is None:
        return ""
    if row.ratio is None:
        return escape_latex(row.result)
    return f"{row.ratio.value:.2f} [{row.ratio.low:.2f}, {row.ratio.high:.2f}]"


def known_truth(results: Results) -> str:
    """Who finds what was planted, and who declares what is not there."""
    _, table = truth(results)
    n = int(table["n"].max())
    planted = averages_over_kinds(table, n)
    nulls = table[(table["kind"] == NULLS[0]) & (table["n"] == n)]
    rows = []
    for way in WAYS:
        mine = planted[planted["way"] == way].iloc[0]
        group = nulls[nulls["way"] == way]["false"]
        low, high = wilson(int(group.sum()), len(group))
        cells = [f"{mine[each]:.2f} [{mine[each + '_low']:.2f}, {mine[each + '_high']:.2f}]" for each in SHOWN]
        rows.append([_way(way), *cells, f"{group.mean():.3f} [{low:.3f}, {high:.3f}]"])
    seeds = table[~table["kind"].isin(NULLS)]["seed"].nunique()
    kinds = [kind for kind in table["kind"].unique() if kind not in NULLS]
    caption = (
        rf"\textbf{{Who finds a planted difference.}} {len(kinds)} kinds of difference ({listed(kinds)}) of several "
        f"sizes, planted in one of two categories of {n} examples or steps each, in tiny llamas of random weights "
        f"({seeds} seeds, each another model), on the CPU. AUROC of the ranking of places; how often the first "
        f"affected place is named; share of the affected places that are declared at level {LEVEL:g} (power): means "
        rf"over all that was planted with 95\,\% intervals over seeds. False: share of {nulls['seed'].nunique()} runs "
        "without a difference in which one is declared, with Wilson's interval. comgra ranks and tests nothing by "
        "itself: its figures are given this package's tests."
    )
    heads = ["way", "AUROC", "first named", "power", "false"]
    return floating("truth", caption, tabular("lllll", heads, rows), wide=True)


SHOWN = ("auroc", "first", "power")


def truth(results: Results) -> tuple[Mapping[str, Any], pd.DataFrame]:
    """Settings and cells of the known-truth study."""
    facts, *records = results.studies["known_truth"]
    return facts["settings"], as_table(records)


def averages_over_kinds(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """One row a way: means of seeds over all that was planted, with intervals over seeds."""
    planted = table[~table["kind"].isin(NULLS) & (table["n"] == n)]
    means = planted.groupby(["way", "n", "seed"], sort=False)[["auroc", "ap", "first", "power", "false", "fdp"]].mean()
    return averages(means.reset_index().assign(kind="all", size=0.0))


def known_truth_kinds(results: Results) -> str:
    """The AUROC of each way, kind by kind."""
    _, table = truth(results)
    n = int(table["n"].max())
    part = table[~table["kind"].isin(NULLS) & (table["n"] == n)]
    wide = part.pivot_table(index="way", columns="kind", values="auroc", sort=False)
    rows = [
        [_way(str(way)), *(f"{value:.2f}" for value in row)]
        for way, row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    caption = (
        rf"\textbf{{The same, kind by kind:}} AUROC over all sizes at {n} examples a category, means over "
        rf"{part['seed'].nunique()} seeds. What was run is said at Table~\ref{{tab:truth}}."
    )
    heads = ["way", *(rf"\rotatebox{{60}}{{{escape_latex(str(kind))}}}" for kind in wide.columns)]
    return floating(
        "truthkinds", caption, tabular("l" + "r" * len(wide.columns), heads, rows), size="scriptsize", gap=2
    )


def _way(way: str) -> str:
    return escape_latex(way.replace("crosslens: ", "its "))


def _study(study: str, render: Callable[[Any], str | list[str]]) -> Callable[[Results], str | list[str]]:
    return lambda results: render(results.studies[study])


TABLES: Mapping[str, tuple[str | None, Callable[[Results], str | list[str]]]] = {
    "features": (None, features),
    "tasks": (None, tasks),
    "mistakes": ("mistakes", _study("mistakes", use.mistakes)),
    "mistakes_each": ("mistakes", _study("mistakes", use.mistakes_each)),
    "residue": ("residue", _study("residue", use.residue)),
    "silent": ("claims", _study("claims", use.silent_errors)),
    "ergonomics": ("idioms", _study("idioms", use.ergonomics)),
    "ergonomics_each": ("idioms", _study("idioms", use.ergonomics_each)),
    "truth": ("known_truth", known_truth),
    "truth_kinds": ("known_truth", known_truth_kinds),
    "correctness": ("correctness", _study("correctness", others.correctness)),
    "overhead": ("overhead", _study("overhead", others.overhead)),
    "scaling": ("scaling", _study("scaling", others.scaling)),
    "published": ("published", _study("published", others.published)),
}
"""File -> the study that it is of, and what renders it; several tables come in one file."""


def render(results: Results) -> dict[str, str]:
    """File name, without its ending -> LaTeX."""
    found = {}
    for file, (study, make) in TABLES.items():
        if study is None or study in results.studies:
            with reading(results, study):
                made: str | Sequence[str] = make(results)
            found[file] = made if isinstance(made, str) else "\n".join(made)
    return found
