"""Tables of what libraries do when they are used directly: mistakes, idioms, residue, silent errors found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..idioms.operations import OPERATIONS
from ..idioms.report import SIGNS, libraries, of, summary
from ..mistakes.catalogue import MISTAKES
from ..mistakes.judge import KINDS, Outcome
from ..mistakes.table import counts
from ..render import escape_latex
from ..residue.table import GROUPS
from .latex import floating, listed, name, tabular

_ONCE = "Each program was run once; its class is decided by rule."
_MARKS = {
    "refused": "r",
    "error": "e",
    "warned": "w",
    "silent": r"\textbf{s}",
    "right": r"$\cdot$",
    "n/a": "",
}
_ROWS = 44
"""Of one table of silent errors: a page's height."""


def outcomes(kept: Mapping[str, Any]) -> list[Outcome]:
    """Of the mistakes, as kept."""
    return [Outcome(**each) for each in kept["outcomes"]]


def ours(library: str) -> bool:
    """Whether it is crosslens, on some backend."""
    return library.startswith("crosslens")


def mistakes(kept: Mapping[str, Any]) -> str:
    """What came of the mistakes, counted by library."""
    tallies = counts(outcomes(kept))

    def rows(through: bool) -> list[list[str]]:
        return [
            [_through(each), *(f"{tallies[each][kind]}" for kind in KINDS)] for each in tallies if ours(each) is through
        ]

    caption = (
        rf"\textbf{{What becomes of a mistake.}} {len(MISTAKES)} mistakes that users make, each written the way a user "
        "of the library would, in a process of its own, on tiny random models in float32 on the CPU. "
        r"\emph{Refused}: an error that names what is wrong, before the model computes with it. \emph{Error}: any "
        r"other. \emph{Warned}: a wrong result, and the console names what is wrong. \emph{Silent}: a wrong "
        r"result without a word. \emph{Right}: what was meant, or the mistake cannot be made, or the documentation "
        f"states the result. n/a: the library does nothing of the kind. {_ONCE}"
    )
    head = ["used directly", *(rf"\emph{{{kind}}}" if kind != "n/a" else kind for kind in KINDS)]
    body = tabular("@{}l" + "r" * len(KINDS) + "@{}", head, rows(False), rows(True))
    return floating("mistakes", caption, body, size="scriptsize", gap=3)


def mistakes_each(kept: Mapping[str, Any]) -> str:
    """Every mistake in every library."""
    found = outcomes(kept)
    shown = list(dict.fromkeys(each.library for each in found))
    by = {(each.library, each.mistake): each for each in found}
    heads = [rf"\rotatebox{{90}}{{{_through(library)}}}" for library in shown]
    rows = []
    for mistake in MISTAKES:
        mine = [by.get((library, mistake.name)) for library in shown]
        rows.append([escape_latex(mistake.does), *(_MARKS[each.kind] if each else "" for each in mine)])
    caption = (
        r"\textbf{Every mistake in every library.} r: refused; e: another error; w: a wrong result with a warning; "
        r"\textbf{s}: a wrong result without a word; $\cdot$: what was meant, or it cannot be made; empty: the "
        r"library does nothing of the kind. What was run is said at Table~\ref{tab:mistakes}; each program once. "
        f"Versions: {_versions(kept['versions'])}."
    )
    return floating("mistakeseach", caption, tabular("l" + "c" * len(shown), ["the user \\ldots", *heads], rows),
                    wide=True, size="scriptsize", gap=3)  # fmt: skip


def residue(kept: Mapping[str, Any]) -> str:
    """What is left behind: by library, used directly and through crosslens."""
    uses = kept["uses"]
    rows = []
    for library in (use for use in uses if not use.startswith("crosslens ") and use != "no library"):
        through = uses.get(f"crosslens {library}")
        both = [left(uses[library]), left(through) if through else None]
        rows.append([name(library), *(_pair(both, group) for group in GROUPS)])
    caption = (
        r"\textbf{What is left behind after one use.} Kinds of differences in the model, the tokenizer, the process "
        "and the files of the machine, and everyday uses of the model that then go otherwise than before "
        "(behaviour): for the library used directly as its documentation teaches, after the clean-up that it offers, "
        "and behind the stroke for the same library through crosslens, after closing. Each use in a process of its "
        "own on a tiny llama, once; a script that knows no library compares before and after. Versions: "
        f"{_residue_versions(uses)}."
    )
    body = tabular("@{}l" + "r" * len(GROUPS) + "@{}", ["directly / crosslens", *GROUPS], rows)
    return floating("residue", caption, body, size="scriptsize", gap=3)


def left(use: Mapping[str, Any]) -> dict[str, int]:
    """Group -> kinds of differences that are left after the clean-up; empty where the use ended in an error."""
    if "differences" not in use["clean"]:
        return {}
    return {group: sum(each["group"] == group for each in use["clean"]["differences"]) for group in GROUPS}


def _pair(both: Sequence[Mapping[str, int] | None], group: str) -> str:
    return " / ".join(f"{each[group]}" if each else "--" for each in both)


def ergonomics(kept: Sequence[Mapping[str, Any]]) -> str:
    """What it takes to say fourteen operations: counts of outcomes, and medians of the programs that are right."""
    rows = [dict(row) for row in kept]
    shown = libraries(rows)
    columns = (
        "right",
        "wrong",
        "raises",
        "impossible",
        "set-up lines",
        "operation lines",
        "tokens",
        "names",
        "changed",
    )
    heads = ["", "right", "wrong", "fails", "none", "set-up", "lines", "tokens", "names", r"$\Delta$"]
    body = []
    for library in sorted(shown, key=lambda each: not ours(each)):
        found = summary(rows, library)
        body.append([name(library), *("" if found[column] is None else f"{found[column]:g}" for column in columns)])
    cases = len({(row["operation"], row["family"]) for row in rows})
    caption = (
        rf"\textbf{{What it takes to say it.}} {len(OPERATIONS)} operations on a tiny llama and a tiny gpt2 ({cases} "
        "cases), each the shortest honest program in the library as its documentation teaches, run in a process of "
        "its own and held to a float64 reference. Right, wrong, fails, none: how many cases are right, return "
        "something else, end in an error, have no way to be said. Of those that are right, medians: logical lines of "
        "set-up and of the operation, tokens, names of the library to know, and words and signs that change with the "
        r"family of models ($\Delta$). Counts of text, which do not vary; each program was run once."
    )
    return floating(
        "ergonomics", caption, tabular("@{}l" + "r" * len(columns) + "@{}", heads, body), size="scriptsize", gap=2
    )


def ergonomics_each(kept: Sequence[Mapping[str, Any]]) -> str:
    """Every operation in every library."""
    rows = [dict(row) for row in kept]
    shown = sorted(libraries(rows), key=lambda each: not ours(each))
    heads = [rf"\rotatebox{{90}}{{{name(library)}}}" for library in shown]
    body = [
        [escape_latex(operation.replace("_", " ")), *(_idiom(of(rows, library, operation)) for library in shown)]
        for operation in OPERATIONS
    ]
    caption = (
        r"\textbf{Every operation in every library.} Logical lines of set-up + operation on the llama; w: the "
        "program returns something else; f: it ends in an error; --: there is no way to say it; a letter behind the "
        r"lines is of the gpt2 alone. What was run is said at Table~\ref{tab:ergonomics}; each program once."
    )
    return floating("ergonomicseach", caption, tabular("@{}l" + "c" * len(shown) + "@{}", ["", *heads], body),
                    size="scriptsize", gap=1)  # fmt: skip


def _idiom(rows: Sequence[Mapping[str, Any]]) -> str:
    """One cell: lines where a family is right, and a letter for each that is not."""
    letters = {"wrong": "w", "raises": "f", "impossible": "--"}
    good = [row for row in rows if row["outcome"] == "right"]
    bad = list(dict.fromkeys(letters[row["outcome"]] for row in rows if row["outcome"] in SIGNS and row not in good))
    lines = f"{good[0]['setup_lines']}+{good[0]['operation_lines']}" if good else ""
    return f"{lines}{',' if good and bad else ''}{'/'.join(bad)}"


def silent_errors(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every silent error that was found and holds, as tables of a page each."""
    holding = [each for each in kept if each["holds"]]
    pages = [holding[i : i + _ROWS] for i in range(0, len(holding), _ROWS)]
    found = []
    for number, page in enumerate(pages):
        rows = [[name(each["library"]), escape_latex(each["claim"])] for each in page]
        versions = {each["library"]: each["version"] for each in page}
        first = number == 0
        caption = (
            rf"\textbf{{Silent errors found{'' if first else ', continued'}.}} Each is a program that uses a library "
            "as its documentation says, prints what that leads one to expect and what comes out instead, and was run "
            f"once, on tiny random models on the CPU. They hold of these versions: {_versions(versions)}."
        )
        body = tabular(r"lp{0.8\textwidth}", ["library", "what happens, without an error"], rows)
        found.append(floating(f"silent{'' if first else number}", caption, body, wide=True, size="scriptsize"))
    return found


def _through(library: str) -> str:
    """A row's name: a library, or crosslens on a backend."""
    return name(library) if library != "crosslens" else "crosslens, plain hooks"


def _versions(versions: Mapping[str, str | None]) -> str:
    shown = {name(each).partition(",")[0]: version for each, version in versions.items()}
    return listed(f"{each} {escape_latex(version.partition('+')[0])}" for each, version in shown.items() if version)


def _residue_versions(uses: Mapping[str, Any]) -> str:
    return _versions({each: use["version"] for each, use in uses.items() if not ours(each) and each != "no library"})
