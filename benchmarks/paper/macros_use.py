"""Numbers of the text that are of libraries used directly: mistakes, silent errors found, residue, idioms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..idioms.operations import OPERATIONS
from ..idioms.report import libraries, summary
from ..mistakes.catalogue import MISTAKES
from ..mistakes.table import counts
from ..render import escape_latex
from .latex import extent, listed, name, words
from .tables_use import left, ours, outcomes

Macros = dict[str, str]

_APPLIES = 0.5
"""Of the mistakes, the share that can be made with a library for it to be named among the others."""


def code(text: str) -> str:
    """A name of a site, which may break behind a dot."""
    return rf"\texttt{{{escape_latex(text).replace('.', '.' + chr(92) + 'allowbreak ')}}}"


def agreed(answers: Iterable[str]) -> str:
    """What all say, or everything that is said."""
    found = list(dict.fromkeys(f"``{escape_latex(each.strip())}''" for each in answers))
    return listed(found, "or")


def mistakes(kept: Mapping[str, Any]) -> Macros:
    """Of the mistakes that users make."""
    tallies = counts(outcomes(kept))
    direct = {each: tally for each, tally in tallies.items() if not ours(each)}
    broad = [each for each, tally in direct.items() if tally["n/a"] <= (1 - _APPLIES) * len(MISTAKES)]
    through = {each: tally for each, tally in tallies.items() if ours(each)}
    silent = [tally["silent"] for tally in through.values()]
    own = tallies["crosslens"]
    never = "never" if max(silent) == 0 else f"{extent(silent)} times"
    return {
        "Mistakes": f"{len(MISTAKES)}",
        "SilentExtent": extent(direct[each]["silent"] for each in broad),
        "SilentBroad": words(len(broad)),
        "SilentRanked": _ranked({each: direct[each]["silent"] for each in broad}),
        "SilentOurs": never,
        "OursBackends": words(len(through)),
        "RefusedOurs": f"{own['refused']}",
        "RightOurs": f"{own['right']}",
        "RefusedRanked": _ranked({each: direct[each]["refused"] for each in broad}),
    }


def claims(kept: Sequence[Mapping[str, Any]]) -> Macros:
    """Of the silent errors that were found and hold."""
    holding = [each for each in kept if each["holds"]]
    by = Counter(each["library"] for each in holding)
    reported = sum(each["upstream"].startswith("http") for each in holding)
    return {
        "Claims": f"{len(holding)}",
        "ClaimsLibraries": words(len(by)),
        "ClaimsRanked": _ranked(by),
        "ClaimsReported": words(reported),
    }


def residue(kept: Mapping[str, Any]) -> Macros:
    """Of what is left behind."""
    uses = kept["uses"]
    direct = {each: left(use) for each, use in uses.items() if not ours(each) and each != "no library"}
    through = {each: left(use) for each, use in uses.items() if ours(each)}
    groups = ("model", "tokenizer", "behaviour")
    clean = [each for each, found in through.items() if found and not any(found[group] for group in groups)]
    others = [each for each, found in direct.items() if found and not any(found[group] for group in groups)]
    behaviour = {each: found["behaviour"] for each, found in direct.items() if found and found["behaviour"]}
    every = "on each of the" if len(clean) == len(through) else f"on {words(len(clean))} of the"
    return {
        "ResidueUses": words(len(direct)),
        "ResidueBehaviour": _ranked(behaviour) or "none of them",
        "ResidueClean": listed(name(each) for each in others) or "none of them",
        "ResidueOurs": f"{every} {words(len(through))} backends",
    }


def idioms(kept: Sequence[Mapping[str, Any]]) -> Macros:
    """Of what it takes to say fourteen operations."""
    rows = [dict(row) for row in kept]
    found = {each: summary(rows, each) for each in libraries(rows)}
    cases = len({(row["operation"], row["family"]) for row in rows})
    every = [each for each, row in found.items() if row["right"] == cases and not ours(each)]
    same = [each for each, row in found.items() if row["changed"] == 0 and row["right"] > cases / 2 and not ours(each)]
    lines = {each: row["operation lines"] for each, row in found.items() if row["operation lines"] is not None}
    others = [value for each, value in lines.items() if not ours(each) and each != "hooks"]
    return {
        "Operations": f"{len(OPERATIONS)}",
        "Cases": f"{cases}",
        "IdiomsRightOurs": f"{found['crosslens']['right']}",
        "IdiomsRightAll": listed(name(each) for each in every) or "no library",
        "IdiomsSame": listed(name(each) for each in same) or "no library",
        "LinesOurs": f"{lines['crosslens']:g}",
        "LinesHooks": f"{lines['hooks']:g}",
        "LinesOthers": f"{min(others):g} to {max(others):g}",
    }


def _ranked(numbers: Mapping[str, int]) -> str:
    """Such as `nnsight 17, pyvene 9`, the largest first."""
    order = sorted(numbers, key=lambda each: -numbers[each])
    return listed(f"{name(each)} {numbers[each]}" for each in order)
