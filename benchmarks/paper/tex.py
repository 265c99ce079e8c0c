"""A source of LaTeX as a reader of the page would see it: what is no prose is blanked, at the same length.

A blanked text has spaces where the source has comments, names of commands, and arguments that are not printed, so that
places in it are places in the source.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

SILENT = frozenset((
    "addcontentsline", "addtocounter", "addtolength", "bibliography", "bibliographystyle", "captionsetup", "citealp",
    "citealt", "citeauthor", "cite", "citep", "citet", "citeyear", "color", "cref", "Cref", "definecolor",
    "documentclass", "eqref", "fontsize", "geometry", "graphicspath", "hypersetup", "hspace", "include",
    "includegraphics", "input", "label", "linespread", "lstinputlisting", "lstset", "nocite", "pageref", "pagestyle",
    "pdfinfo", "pdfinfoomitdate", "pdfsuppressptexinfo", "pdftrailerid", "ref", "RequirePackage", "setcounter",
    "setlength", "setlist", "thispagestyle", "url", "urlstyle", "usepackage", "vspace",
))  # fmt: skip
"""Commands none of whose arguments is printed as it stands."""
FRAMES = frozenset(("minipage", "tabular", "tabular*", "tabularx", "table", "table*", "figure", "figure*"))
"""Environments whose first arguments are widths, columns and places."""
_SETTINGS = frozenset((
    "arraystretch", "dblfloatpagefraction", "dbltopfraction", "floatpagefraction", "textfraction", "topfraction",
    "ttdefault",
))  # fmt: skip
_DEFINES = ("newcommand", "renewcommand", "providecommand", "DeclareRobustCommand")

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)(%[^\n]*)")
_COMMAND = re.compile(r"\\([A-Za-z@]+)\*?")
_SWITCH = re.compile(r"\\(ifhas[A-Za-z]+|else|fi)(?![A-Za-z])")
_BREAK = re.compile(r"\\\\\*?(\[[^\]\n]*\])")
_ASSIGNED = re.compile(r"(?<=\\pdfinfoomitdate)\s*=\s*-?\d+|(?<=\\pdfsuppressptexinfo)\s*=\s*-?\d+")
_PARAMETER = re.compile(r"#\d")
_BRACE = re.compile(r"(?<!\\)[{}]")


@dataclass(frozen=True)
class Span:
    """A part of the source.

    Args:
        start, end: places in it, the second behind the last letter.
    """

    start: int
    end: int


def line_of(text: str, place: int) -> int:
    """The line, from 1, in which a place lies."""
    return text.count("\n", 0, place) + 1


def blank(text: str, spans: Collection[Span]) -> str:
    """The text with spaces in the spans; lines stay lines."""
    letters = list(text)
    for span in spans:
        for i in range(span.start, span.end):
            if letters[i] != "\n":
                letters[i] = " "
    return "".join(letters)


def without_comments(text: str) -> str:
    """Comments blanked."""
    return blank(text, [Span(found.start(2), found.end(2)) for found in _COMMENT.finditer(text)])


def prose(text: str) -> str:
    """What is printed as it stands: comments, commands and silent arguments blanked.

    Arguments of any other command are prose. What a definition stands for is prose too, wherever it is used.
    """
    text = without_comments(text)
    spans = [Span(*found.span()) for pattern in (_ASSIGNED, _PARAMETER) for found in pattern.finditer(text)]
    spans += [Span(*found.span(1)) for found in _BREAK.finditer(text)]
    for found in _COMMAND.finditer(text):
        spans.append(Span(*found.span()))
        name, place = found[1], found.end()
        if name in _DEFINES:
            spans += _definition(text, place)
        elif name in SILENT:
            spans += arguments(text, place)
        elif name in ("begin", "end"):
            given = list(arguments(text, place))
            spans += given if given and _inside(text, given[0]) in FRAMES else given[:1]
        elif name in ("textcolor", "href", "raisebox", "rule", "parbox", "makebox", "rotatebox", "resizebox"):
            spans += list(arguments(text, place))[: {"rule": 2, "resizebox": 2}.get(name, 1)]
    text = blank(text, spans)
    return _BRACE.sub(" ", text)


def _definition(text: str, place: int) -> Iterator[Span]:
    """The name and the number of arguments of a definition; its body is prose, but for a setting of the layout."""
    name = next(arguments(text, place), None)
    if name is not None and _inside(text, name).removeprefix("\\") in _SETTINGS:
        yield from arguments(text, place)
        return
    for given in arguments(text, place):
        first = text[given.start]
        if first == "[" or _COMMAND.fullmatch(_inside(text, given)):
            yield given
        else:
            return


def arguments(text: str, place: int) -> Iterator[Span]:
    """The arguments that stand right behind a command, brackets and braces with what they hold."""
    while place < len(text) and text[place] in "[{":
        end = _closing(text, place)
        if end is None:
            return
        yield Span(place, end)
        place = end


def _closing(text: str, place: int) -> int | None:
    """Behind the bracket that closes the one at `place`; None where there is none."""
    depth, close = 0, {"{": "}", "[": "]"}[text[place]]
    for i in range(place, len(text)):
        if i > 0 and text[i - 1] == "\\":
            continue
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth < 0:
                return None
        if text[i] == close and depth == 0:
            return i + 1
    return None


def _inside(text: str, span: Span) -> str:
    return text[span.start + 1 : span.end - 1].strip()


def commands(text: str) -> Iterator[tuple[str, int]]:
    """Every command outside of comments: its name, and where it begins."""
    for found in _COMMAND.finditer(without_comments(text)):
        yield found[1], found.start()


def files(text: str, command: str) -> list[str]:
    """What a command such as `input` or `includegraphics` names, outside of comments."""
    text = without_comments(text)
    return re.findall(rf"\\{command}(?:\[[^\]]*\])?\{{([^}}]*)\}}", text)


def live(text: str, there: Collection[str]) -> str:
    r"""The source without the branches of `\ifhasNAME ... \else ... \fi` that LaTeX passes over.

    Args:
        there: names of what the results hold; `\ifhasNAME` is true of them.

    Raises:
        ValueError: a branch is not closed, or closed twice; says on which line.
    """
    text = without_comments(text)
    dead: list[Span] = []
    open_: list[tuple[int, bool]] = []  # where a dead branch would begin, and whether the branch is alive
    for found in _SWITCH.finditer(text):
        word = found[1]
        if word.startswith("ifhas"):
            open_.append((found.end(), word.removeprefix("ifhas") in there))
            continue
        if not open_:
            raise ValueError(f"line {line_of(text, found.start())}: \\{word} without \\ifhas...")
        start, alive = open_.pop()
        if not alive:
            dead.append(Span(start, found.start()))
        if word == "else":
            open_.append((found.end(), not alive))
    if open_:
        raise ValueError(f"line {line_of(text, open_[-1][0])}: \\ifhas... without \\fi")
    return blank(text, dead)
