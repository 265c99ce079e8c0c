"""Two runs beside one another: which figures of their tables and pages agree, and which differ beyond the intervals.

Everything is read from what the runs render to, Markdown tables, so that every table and every study takes part. A
figure is found by its page, its table's heading, its row and its column; what a column says of its intervals in
brackets, such as over how many processes they are, may differ between the runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .render import FORMATS
from .store import read_run
from .studies import pages
from .summary import every_table

Verdict = Literal["same", "within", "unknown", "beyond", "changed", "missing", "new"]
MEANINGS: Mapping[Verdict, str] = {
    "same": "the same text",
    "within": "another number, and the intervals overlap",
    "unknown": "another number that has no interval",
    "beyond": "intervals that do not overlap",
    "changed": "another word, such as another outcome",
    "missing": "in the first alone",
    "new": "in the second alone",
}
_INTERVAL = re.compile(r"^(\S+) \[(\S+), (\S+)\]$")
_NUMBER = re.compile(r"\d[\d.,]*")
_BRACKETS = re.compile(r" \[[^]]*\]$")


@dataclass(frozen=True)
class Figure:
    """One figure of both runs; empty text where a run lacks it."""

    page: str
    table: str
    row: str
    column: str
    first: str
    second: str

    @property
    def verdict(self) -> Verdict:
        """How the two stand to one another."""
        if self.first == self.second:
            return "same"
        if not self.first or not self.second:
            return "new" if self.second else "missing"
        one, two = _range(self.first), _range(self.second)
        if one is None or two is None:
            return "unknown" if _NUMBER.sub("", self.first) == _NUMBER.sub("", self.second) else "changed"
        if one[0] == one[1] and two[0] == two[1]:
            return "unknown"
        return "within" if one[0] <= two[1] and two[0] <= one[1] else "beyond"


def differences(first: Path, second: Path) -> list[Figure]:
    """Every figure of two runs.

    Raises:
        InputError: a folder holds no run, or a damaged one.
    """
    one, two = rendered(first), rendered(second)
    return [figure for page in dict.fromkeys((*one, *two)) for figure in figures(page, one.get(page), two.get(page))]


def rendered(run: Path) -> dict[str, str]:
    """Name of each table and study of a run -> its Markdown."""
    return {table.name: FORMATS["md"]([table]) for table in every_table(read_run(run))} | pages(run)


def figures(page: str, first: str | None, second: str | None) -> list[Figure]:
    """Those of one page; a page that one run lacks is one figure."""
    if first is None or second is None:
        return [Figure(page, "", "", "", "there" if first else "", "there" if second else "")]
    one, two = cells(first), cells(second)
    return [Figure(page, *key, one.get(key, ""), two.get(key, "")) for key in dict.fromkeys((*one, *two))]


def cells(text: str) -> dict[tuple[str, str, str], str]:
    """(heading, row, column) -> text, of every table of a Markdown page; a row goes by as many of its cells as it takes
    to tell it from the others."""
    found: dict[tuple[str, str, str], str] = {}
    heading, lines = "", [*text.splitlines(), ""]
    grid: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            grid.append([_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if len(grid) > 2:
            found.update(_of_table(heading, grid[0], grid[2:]))
        grid = []
        if line.startswith("#"):
            heading = line.lstrip("# ")
    return found


def _of_table(heading: str, header: list[str], rows: list[list[str]]) -> dict[tuple[str, str, str], str]:
    width = next((n for n in range(1, len(header)) if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)
    columns = [_BRACKETS.sub("", column) for column in header[width:]]
    return {
        (heading, ", ".join(row[:width]), column): cell
        for row in rows
        for column, cell in zip(columns, row[width:], strict=False)
    }


def _plain(cell: str) -> str:
    return cell.strip().replace("\\|", "|").strip("*` ")


def _range(text: str) -> tuple[float, float] | None:
    """The interval of a figure, a number's own value twice; None for a text."""
    match = _INTERVAL.match(text)
    try:
        low, high = (match[2], match[3]) if match else (text, text)
        return float(low.replace(",", "")), float(high.replace(",", ""))
    except ValueError:
        return None


def counted(found: Iterable[Figure]) -> dict[str, dict[Verdict, int]]:
    """Page -> how many of its figures stand how."""
    counts: dict[str, dict[Verdict, int]] = {}
    for figure in found:
        page = counts.setdefault(figure.page, dict.fromkeys(MEANINGS, 0))
        page[figure.verdict] += 1
    return counts
