"""Numbers that are typed: digits and number words of the prose that are no macro and no declared name.

A name or phrase that holds a number and is no result, such as `GPT-2` or `float64`, is declared in `paper/names.txt`,
one a line. All else that counts or measures has to be a macro.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crosslens.adapters import InputError

from .tex import line_of, prose

_SMALL = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_LARGE = "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion"
_OTHER = "zero none half halves third thirds quarter quarters tenth tenths twice thrice dozen double triple tenfold"
WORDS = frozenset(f"{_SMALL} {_LARGE} {_OTHER} hundreds thousands millions dozens couple twofold threefold".split())
"""Words that count."""

_DIGITS = re.compile(r"(?<![\w.])[\w.,/:+-]*\d[\w.,/:+-]*")
_ONE_OF = f"(?:{'|'.join(sorted(WORDS))})"
_WORD = re.compile(rf"\b{_ONE_OF}(?:-{_ONE_OF})*\b", re.IGNORECASE)


@dataclass(frozen=True)
class Typed:
    """A number that was typed.

    Args:
        line: of the source, from 1.
        text: the word with the number in it.
    """

    line: int
    text: str


def typed(source: str, names: Sequence[str]) -> list[Typed]:
    """Every number of the prose that is typed, in order.

    Args:
        source: of LaTeX.
        names: what may stand as it is.
    """
    text = prose(source)
    for name in sorted(names, key=len, reverse=True):
        pattern = r"\s+".join(map(re.escape, name.split()))
        bounded = re.compile(rf"(?<![\w.])(?<!\d-){pattern}(?![\w])(?!\.\d)", re.IGNORECASE)
        text = bounded.sub(lambda found: re.sub(r"\S", " ", found[0]), text)
    found = [(each.start(), each[0].strip(".,:-")) for pattern in (_DIGITS, _WORD) for each in pattern.finditer(text)]
    return [Typed(line_of(source, place), word) for place, word in sorted(found)]


def read_names(path: Path) -> list[str]:
    """The declared names: one a line; empty lines and those that begin with # are passed over.

    Raises:
        InputError: it cannot be read, or a line has a number that stands by itself.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name.lower() in WORDS or any(not re.search(r"[A-Za-z]", word) for word in name.split()):
            raise InputError(f"{path}, line {number}: {name!r} counts something and is no name; make it a macro")
        names.append(name)
    return names
