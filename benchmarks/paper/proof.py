"""What LaTeX said of the built paper: boxes that are too full, references that lead nowhere, and the number of pages.

`python -m crosslens.benchmarks.paper.proof paper/build/crosslens.log`, after latexmk.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from crosslens.adapters import CrosslensError, InputError

MOST_OVER = 1.0
"""Points by which a line may be too wide: less is not seen."""
PAGES = 4
"""Of the text, without references and appendix."""
END = "sec:end"
"""Label of the last line of the text."""

_OVERFULL = re.compile(r"^Overfull \\([hv])box \(([\d.]+)pt too (?:wide|high)\)(.*)$", re.MULTILINE)
_SAID = re.compile(
    r"^(?:LaTeX Warning: (?:Citation|Reference|Label|There were|Float too large|Hyper reference).*|Missing character.*|"
    r"Package natbib Warning: (?:Citation|There were).*|LaTeX Font Warning: .*undefined.*|Warning--.*|"
    r"! .*)$",
    re.MULTILINE,
)
_LABEL = re.compile(r"\\newlabel\{([^}]*)\}\{\{[^}]*\}\{(\d+)\}")


def complaints(log: str) -> Iterator[str]:
    """Each line of a log, of LaTeX or BibTeX, that a reader of the page would see the reason of."""
    for found in _OVERFULL.finditer(log):
        if float(found[2]) > MOST_OVER:
            yield f"a {found[1]}box is {found[2]} pt too full{found[3]}"
    yield from dict.fromkeys(found[0] for found in _SAID.finditer(log))


def pages(aux: str) -> dict[str, int]:
    """Label -> the page that it is on."""
    return {found[1]: int(found[2]) for found in _LABEL.finditer(aux)}


def proof(log: Path) -> list[str]:
    """What is wrong with the built paper, one line each.

    Args:
        log: of LaTeX; what BibTeX said, and the labels, lie beside it.

    Raises:
        InputError: a file is not there.
    """
    found = list(complaints(_text(log)))
    found += [f"BibTeX: {line}" for line in complaints(_text(log.with_suffix(".blg")))]
    where = pages(_text(log.with_suffix(".aux"))).get(END)
    if where is None:
        found.append(f"the text has no \\label{{{END}}} at its end")
    elif where != PAGES:
        found.append(f"the text ends on page {where}; it must end on page {PAGES}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; `make paper` builds it") from error


def main(arguments: list[str]) -> int:
    """Print what is wrong; exit status 1 if something is, 2 for wrong usage."""
    if len(arguments) != 1:
        print("usage: python -m crosslens.benchmarks.paper.proof BUILD/crosslens.log", file=sys.stderr)
        return 2
    try:
        found = proof(Path(arguments[0]))
    except CrosslensError as error:
        print(f"proof: {error}", file=sys.stderr)
        return 2
    for line in found:
        print(f"proof: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
