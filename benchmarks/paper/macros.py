"""Every number of the paper's text, by the name of its macro; what has a direction is chosen here, from the numbers.

A macro is `\\res` and a name. Those of a study that is not there are not defined, and `\\ifhasNAME` says whether it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from crosslens.adapters import CAPABILITIES
from crosslens.adapters.capabilities import FAMILY_NAMES

from ..known_truth_tables import NULLS, differences
from ..known_truth_ways import LEVEL, OURS
from ..matrix import state
from ..render import escape_latex
from ..stories.running import LEVEL as STORY_LEVEL
from ..tables import CONTROL, tables
from . import macros_use as use
from . import others
from .latex import extent, listed, name, signed, significant, words
from .sources import Results, reading
from .tables import SHOWN, averages_over_kinds, truth

Macros = dict[str, str]


def kit(results: Results) -> Macros:
    """Of the conformance kit."""
    outcomes = [(each, each.outcomes) for each in results.backends if each.outcomes]
    able = {
        each.name: sum(state(each, capability) in ("supported", "most") for capability in CAPABILITIES)
        for each, _ in outcomes
    }
    editing = [each.name for each, _ in outcomes if state(each, "edit.replace") in ("supported", "most")]
    return {
        "Backends": words(len(outcomes)),
        "Editing": words(len(editing)),
        "Families": words(len(FAMILY_NAMES)),
        "Capabilities": f"{len(CAPABILITIES)}",
        "CapableExtent": extent(able[each] for each in editing),
        "ChecksPassed": f"{sum(found.passed for _, found in outcomes):,}",
        "ChecksFailed": f"{sum(found.xfailed for _, found in outcomes):,}",
    }


def run(results: Results) -> Macros:
    """Of the tasks, and of the machine."""
    facts = results.run.facts
    found = tables(results.run)
    rows = [row for table in found for row in table.rows if not row.control]
    judged = [row for row in rows if row.result not in ("unsupported", "skipped", "not run")]
    right = [row for row in judged if row.result == "right"]
    nulls = [row.ratio if row.backend == CONTROL else row.same for table in found for row in table.rows if row.control]
    controls = [null for null in nulls if null is not None]
    asked = facts["arguments"]
    return {
        "Tasks": words(len(found)),
        "TaskBackends": listed(name(each) for each in asked["backends"]),
        "CellsJudged": f"{len(judged)}",
        "CellsRight": f"{len(right)}",
        "CellsUnsupported": words(sum(row.result == "unsupported" for row in rows)),
        "WorstError": significant(max((row.error for row in right if row.error is not None), default=0.0), 1),
        "Controls": f"{len(controls)}",
        "ControlsCover": f"{sum(each.covers(1.0) for each in controls)}",
        "Machine": escape_latex(results.machine),
        "Torch": escape_latex(str(facts["environment"]["versions"]["torch"]).partition("+")[0]),
        "Date": f"{datetime.fromisoformat(facts['started']):%-d %B %Y}",
        "Commit": str((facts["environment"].get("git") or {}).get("commit", "unknown"))[:10],
    }


def stories(kept: Mapping[str, Any]) -> Macros:
    """Of the three programs that are shown."""
    told = kept["stories"]
    swap, kinds, sick = (told[each]["found"] for each in ("swap_backend", "two_kinds", "sick_training"))
    answers = swap["answers"]
    spread = max(
        max(each[i][1] for each in answers.values()) - min(each[i][1] for each in answers.values()) for i in (0, 1)
    )
    first = kinds["first"][0]
    grid, after = sick["grid"], [i for i, step in enumerate(sick["grid"]["steps"]) if step >= sick["from"]]
    cut = [grid["ratios"][grid["sites"].index(sick["first"])][i] for i in after]
    layer = f"module:{sick['layer']}:output"
    early = [row for site, row in zip(grid["sites"], grid["ratios"], strict=True) if site < layer]
    return {
        "SwapBackends": words(len(answers)),
        "SwapSite": use.code(swap["site"]),
        "SwapBefore": use.agreed(each[0][0] for each in answers.values()),
        "SwapAfter": use.agreed(each[1][0] for each in answers.values()),
        "SwapDifferenceBefore": signed(next(iter(answers.values()))[0][1], 2),
        "SwapDifferenceAfter": signed(next(iter(answers.values()))[1][1], 2),
        "SwapSpread": significant(spread, 1),
        "KindsTexts": f"{kinds['examples']}",
        "KindsItems": f"{kinds['items']}",
        "KindsCategories": listed(kinds["categories"]),
        "KindsFigures": f"{kinds['figures']:,}",
        "KindsContrasts": f"{kinds['contrasts']:,}",
        "KindsShown": f"{kinds['shown']:,}",
        "KindsLevel": f"{STORY_LEVEL:g}",
        "KindsSeconds": f"{told['two_kinds']['seconds']:.0f}",
        "KindsSite": use.code(first["site"]),
        "KindsFigure": escape_latex(first["kpi"].replace("_", " ")),
        "KindsPair": f"{first['a']} and {first['b']}",
        "KindsG": f"$|g|={abs(first['g']):.1f}$",
        "KindsInterval": "[{:.1f}, {:.1f}]".format(*sorted(abs(first[each]) for each in ("g_low", "g_high"))),
        "KindsP": significant(first["p_maxt"], 2),
        "SickFrom": f"{sick['from']}",
        "SickSteps": f"{sick['steps']}",
        "SickLayer": f"{sick['layer']}",
        "SickFound": sick["first"].removeprefix("module:").partition(":")[0],
        "SickDiffer": f"{sick['differ']}",
        "SickFigures": f"{sick['figures']}",
        "SickRatio": f"{sum(cut) / len(cut):.2f}",
        "SickBefore": f"{max(abs(value - 1) for row in early for value in row) * 100:.0f}\\,\\%",
        "SickLosses": "{:.2f} and {:.2f}".format(*sick["losses"].values()),
    }


def known_truth(results: Results) -> Macros:
    """Of who finds what was planted."""
    _, table = truth(results)
    n = int(table["n"].max())
    means = averages_over_kinds(table, n)
    auroc, first, power = (dict(zip(means["way"], means[each].tolist(), strict=True)) for each in SHOWN)
    planted = table[~table["kind"].isin(NULLS) & (table["n"] == n)]
    best = planted.groupby(["kind", "way"], sort=False)["auroc"].mean().groupby("kind", sort=False).max()
    gaps = differences(table)
    better, worse = gaps[gaps["low"] > 0], gaps[gaps["high"] < 0]
    lost = worse[(worse["n"] == n) & ~worse["way"].str.startswith(OURS)]
    nulls = table[table["kind"].isin(NULLS) & (table["way"] == OURS)]
    false = nulls.groupby(["kind", "n"], sort=False)["false"].mean()
    rivals = [way for way in auroc if not way.startswith(OURS)]
    return {
        "TruthKinds": words(planted["kind"].nunique()),
        "TruthSeeds": f"{planted['seed'].nunique()}",
        "TruthN": f"{n}",
        "TruthAuroc": f"{auroc[OURS]:.2f}",
        "TruthRivals": listed(f"{auroc[way]:.2f} ({_way(way)})" for way in rivals),
        "TruthFirst": f"{first[OURS]:.2f}",
        "TruthPower": f"{power[OURS]:.2f}",
        "TruthFalse": f"{false.min():.3f} to {false.max():.3f}",
        "TruthLevel": f"{LEVEL:g}",
        "TruthCompared": f"{len(gaps)}",
        "TruthBetter": f"{len(better)}",
        "TruthWorse": f"{len(worse)}",
        "TruthLost": _lost(lost),
        "TruthHardest": f"{best.idxmin()} (best AUROC {best.min():.2f})",
    }


def _lost(rows: Any) -> str:
    """Who beats this package by a whole interval, and at what."""
    by = {way: list(dict.fromkeys(part["kind"])) for way, part in rows.groupby("way", sort=False)}
    return "; ".join(f"{_way(way)} at {listed(map(str, kinds))}" for way, kinds in by.items()) or "nobody at nothing"


def _way(way: object) -> str:
    shown = {"t test of each neuron": "a t test of each neuron", "linear probe": "a linear probe"}
    return shown.get(str(way), str(way))


def _of(study: str, make: Callable[[Any], Macros]) -> Callable[[Results], Macros]:
    return lambda results: make(results.studies[study])


PARTS: Sequence[tuple[str | None, Callable[[Results], Macros]]] = (
    (None, kit),
    (None, run),
    ("stories", _of("stories", stories)),
    ("mistakes", _of("mistakes", use.mistakes)),
    ("claims", _of("claims", use.claims)),
    ("residue", _of("residue", use.residue)),
    ("idioms", _of("idioms", use.idioms)),
    ("known_truth", known_truth),
    ("correctness", _of("correctness", others.correctness_macros)),
    ("overhead", _of("overhead", others.overhead_macros)),
    ("costs", _of("costs", others.costs_macros)),
    ("scaling", _of("scaling", others.scaling_macros)),
    ("published", _of("published", others.published_macros)),
)
"""Study -> the macros that are of it; None: of every run."""
SWITCHES = ("stories", "mistakes", "claims", "residue", "idioms", "known_truth", "correctness", "overhead", "costs",
            "scaling", "published")  # fmt: skip
"""Studies that the text speaks of."""


def switch(study: str) -> str:
    r"""Of a study, as in `\ifhasknowntruth`."""
    return study.replace("_", "")


def macros(results: Results) -> Macros:
    r"""Name, without `\res`, -> what it stands for."""
    found: Macros = {}
    for study, make in PARTS:
        if study is None or study in results.studies:
            with reading(results, study):
                found |= make(results)
    return found


def render(results: Results) -> str:
    """The file that defines them all."""
    lines = [f"% of {results.folder.name}, by `crosslens paper`"]
    for study in SWITCHES:
        there = "true" if study in results.studies else "false"
        lines += [rf"\newif\ifhas{switch(study)}", rf"\has{switch(study)}{there}"]
    lines += [rf"\newcommand{{\res{each}}}{{{value}\xspace}}" for each, value in macros(results).items()]
    return "\n".join(lines) + "\n"
