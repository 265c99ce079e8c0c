"""Tables as Markdown, CSV, LaTeX, JSON, and on a terminal."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from crosslens.adapters import InputError

from .store import to_json
from .tables import Column, Row, Table, cell_text, columns

_WIDE = 112  # columns of a terminal that has room for every column
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def markdown(tables: Sequence[Table]) -> str:
    """One section a table; notes below."""
    parts = []
    for table in tables:
        shown = columns(table)
        body = [[cell_text(row, column).replace("|", "\\|") for column in shown] for row in table.rows]
        grid = list(zip([_one_line(column) for column in shown], *body, strict=True))  # one tuple a column
        widths = [max(map(len, texts)) for texts in grid]
        rules = ["-" * (w - 1) + ("-" if c.align == "left" else ":") for c, w in zip(shown, widths, strict=True)]
        lines = [[texts[0] for texts in grid], rules, *body]
        finding = f"**Finding:** {table.finding}\n\n" if table.finding else ""
        notes = "\n".join(f"- {note}" for note in [*table.notes, *table.legend])
        text = "\n".join(_line(line, shown, widths) for line in lines)
        parts.append(f"## {table.title}\n\n{text}\n\n{finding}{notes}\n")
    return "\n".join(parts)


def _one_line(column: Column) -> str:
    return column.header.replace("\n", " ")


def _line(cells: Sequence[str], shown: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column.align == "left" else cell.rjust(width)
        for cell, column, width in zip(cells, shown, widths, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def comma_separated(tables: Sequence[Table]) -> str:
    """Every figure, unrounded, of all tables in one; units are in the names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(tables[0], tables[0].rows[0])) if tables else [], lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows(_flat(table, row) for row in table.rows)
    return text.getvalue()


def _flat(table: Table, row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {"task": table.task, "model": table.model}
    for entry in fields(row):
        value = getattr(row, entry.name)
        if entry.name == "ratio":
            flat["ratio"] = None if value is None else value.value
            flat["ratio_low"] = None if value is None else value.low
            flat["ratio_high"] = None if value is None else value.high
        else:
            flat[entry.name] = value
    return flat


def latex(tables: Sequence[Table]) -> str:
    """A booktabs table each."""
    parts = []
    for table in tables:
        shown = columns(table)
        align = "".join(column.align[0] for column in shown)
        head = " & ".join(escape_latex(_one_line(column)) for column in shown)
        rows = [" & ".join(escape_latex(cell_text(row, column)) for column in shown) + r" \\" for row in table.rows]
        body = "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", head + r" \\", r"\midrule", *rows])
        notes = "\n".join(f"% {note}" for note in [*table.notes, *table.legend])
        parts.append(f"% {table.title}\n{body}\n\\bottomrule\n\\end{{tabular}}\n{notes}\n")
    return "\n".join(parts)


def escape_latex(text: str) -> str:
    """Text with the characters that LaTeX takes for commands written out."""
    return re.sub(r"[&%$#_{}~^\\]", lambda match: _LATEX[match[0]], text)


def as_json(tables: Sequence[Table]) -> str:
    """Every figure, unrounded, with findings and notes."""
    return to_json(data(tables), indent=2)


def data(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """What `as_json` writes."""
    return [asdict(table) for table in tables]


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
    "json": as_json,
}


def write(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table to `folder` as Markdown and as CSV; returns the files.

    Raises:
        InputError: the folder cannot be written.
    """
    files = []
    try:
        folder.mkdir(exist_ok=True)
        for table in tables:
            for suffix, form in (("md", markdown), ("csv", comma_separated)):
                path = folder / f"{table.name}.{suffix}"
                part = path.with_name(f".{path.name}.part")
                part.write_text(form([table]), encoding="utf-8")
                os.replace(part, path)
                files.append(path)
    except OSError as error:
        raise InputError(f"the tables cannot be written to {folder}: {error}; --format prints them instead") from error
    return files


def show(console: Console, tables: Sequence[Table]) -> None:
    """Print tables, each with its finding and notes."""
    wide = console.width >= _WIDE
    for table in tables:
        shown = [column for column in columns(table) if wide or not column.wide]
        grid = RichTable(box=SIMPLE_HEAD, padding=(0, 1 if wide else 0, 0, 0), show_edge=False, pad_edge=False)
        for column in shown:
            grid.add_column(column.header, justify=column.align, no_wrap=column.key != "result", min_width=5)
        for row in table.rows:
            cells = [Text(cell_text(row, column)) for column in shown]
            style = "" if row.result == "right" else "dim" if row.result in ("", "skipped", "not run") else "yellow"
            grid.add_row(*cells, style=style)
        console.print(Text(f"\n{table.title}\n", style="bold"))
        console.print(grid)
        if table.finding:
            console.print(Text.assemble(("\nFinding: ", "bold"), table.finding))
        _print_notes(console, table.notes)
        if table is tables[-1] or table.legend != tables[-1].legend:  # once, where it is the same for all
            _print_notes(console, table.legend)


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
