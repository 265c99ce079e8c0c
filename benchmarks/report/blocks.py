"""What a report is made of: sections of prose, tables, figures and heat maps. Texts are plain unless they are `Markup`.

A template escapes whatever is not `Markup`, and `Markup.format` what it is given: no text of a run is ever markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

STATES = ("good", "fair", "poor", "bad", "none")
"""Of a cell of a heat map, from right to silently wrong; none is not applicable."""

_LINE, _NAME = 60, 44  # characters beyond which a cell of a table breaks into lines, and its first column may


@dataclass(frozen=True)
class Prose:
    """Paragraphs and lists.

    Attributes:
        level: of a heading; 0 for what is none.
    """

    html: Markup
    level: int = 0
    kind: str = "prose"


@dataclass(frozen=True)
class Table:
    """A table that the page sorts and filters.

    Attributes:
        title: what it is of; names it for those who cannot see it.
        rows: each as long as `head`.
        right: columns of figures.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()
    kind: str = "table"

    @property
    def wordy(self) -> bool:
        """Whether it has cells of several lines."""
        return any(len(text) > _LINE for row in self.rows for text in row)

    @property
    def firm(self) -> bool:
        """Whether the first column is of names that need not break."""
        return all(len(row[0]) <= _NAME for row in self.rows)


@dataclass(frozen=True)
class Figures:
    """Drawings side by side.

    Attributes:
        title: of all of them.
        legend: class of a series -> its name.
        panels: what is chosen -> drawings; one choice is shown at a time, the first to begin with.
        notes: what a reader must know of them.
    """

    title: str
    panels: Mapping[str, Sequence[Markup]]
    legend: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    kind: str = "figures"


@dataclass(frozen=True)
class Cell:
    """Of a heat map.

    Attributes:
        at: choices, row and column, in this order.
        state: one of `STATES`.
        shown: a word or figure that has room in it.
        details: name -> text, shown when it is opened.
        programs: keys of the programs that belong to it.
    """

    at: tuple[str, ...]
    state: str
    shown: str
    details: Mapping[str, str]
    programs: Sequence[str] = ()


@dataclass(frozen=True)
class Heat:
    """A map of cells; each opens on its details and programs.

    Attributes:
        axes: names of the choices, of the rows and of the columns.
        legend: state -> what it says here.
        orders: axis -> its names in order, where that is not the order of the cells.
    """

    title: str
    axes: Sequence[str]
    cells: Sequence[Cell]
    legend: Mapping[str, str]
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind: str = "heat"

    def data(self) -> dict[str, Any]:
        """For the page's script: names and details by number, since they recur."""
        names: list[dict[str, int]] = []
        for axis, name in enumerate(self.axes):
            seen = {cell.at[axis] for cell in self.cells}
            names.append({each: i for i, each in enumerate(n for n in self.orders.get(name, ()) if n in seen)})
        texts: dict[str, int] = {}

        def number(table: dict[str, int], text: str) -> int:
            return table.setdefault(text, len(table))

        cells = []
        for cell in self.cells:
            at = [number(table, text) for table, text in zip(names, cell.at, strict=True)]
            details = [number(texts, text) for pair in cell.details.items() for text in pair]
            programs = [number(texts, key) for key in cell.programs]
            cells.append([at, STATES.index(cell.state), number(texts, cell.shown), details, programs])
        return {
            "title": self.title,
            "axes": list(self.axes),
            "names": [list(table) for table in names],
            "texts": list(texts),
            "cells": cells,
        }


Block = Prose | Table | Figures | Heat


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its contents.

    Attributes:
        id: its anchor.
        about: one line under the title.
    """

    id: str
    title: str
    blocks: Sequence[Block]
    about: str = ""


def paragraph(text: str) -> Prose:
    """One paragraph of plain text."""
    return Prose(Markup("<p>{}</p>").format(text))


def heading(text: str, level: int = 3) -> Prose:
    """A heading within a section."""
    return Prose(Markup("<h{0}>{1}</h{0}>").format(level, text), level)


def listing(texts: Sequence[str]) -> Prose:
    """A list of plain texts."""
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in texts)
    return Prose(Markup("<ul class=note>{}</ul>").format(items))


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An SVG element; `_` in the name of an attribute stands for `-`, and one that ends in it is a Python keyword."""
    written = "".join(f' {re.sub("_", "-", name.rstrip("_"))}="{escape(_short(v))}"' for name, v in attributes.items())
    inside = Markup("").join(escape(child) for child in children)
    return Markup(f"<{tag}{written}>{inside}</{tag}>") if inside else Markup(f"<{tag}{written}/>")


def _short(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
