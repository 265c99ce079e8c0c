"""Tables as Markdown, CSV, LaTeX and JSON, each a pure function of them; `terminal.py` prints them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError

from .columns import Column, cell_text
from .estimate import Estimate
from .store import to_json
from .summary import Summary
from .tables import Table

AnyTable = Table | Summary

_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after \\ it would be the start of an option
    "−": r"\textminus{}",
    "×": r"\texttimes{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\to$",
}


def markdown(tables: Sequence[AnyTable]) -> str:
    """One section a table; cautions above it, notes below."""
    parts = []
    for table in tables:
        shown = table.columns
        body = [[_marked(table, row, column, "**", "**") for column in shown] for row in table.rows]
        grid = list(zip([one_line(column) for column in shown], *body, strict=True))  # one tuple a column
        widths = [max(map(len, texts)) for texts in grid]
        rules = ["-" * (w - 1) + ("-" if c.align == "left" else ":") for c, w in zip(shown, widths, strict=True)]
        lines = [[texts[0] for texts in grid], rules, *body]
        above = "".join(f"**Caution:** {plain(caution)}\n\n" for caution in table.cautions)
        finding = f"**Finding:** {plain(table.finding)}\n\n" if table.finding else ""
        notes = "\n".join(f"- {plain(note)}" for note in [*table.notes, *table.legend])
        text = "\n".join(_line(line, shown, widths) for line in lines)
        parts.append(f"## {table.title}\n\n{above}{text}\n\n{finding}{notes}\n")
    return "\n".join(parts)


def one_line(column: Column) -> str:
    """A header without its line breaks; one within a word goes with its hyphen."""
    return column.header.replace("-\n", "").replace("\n", " ")


def plain(text: str) -> str:
    """Text of a library, such as an error's, in one line."""
    return " ".join(text.split())


def is_best(table: AnyTable, row: Any, column: Column) -> bool:
    """Whether a cell is marked: its interval lies below those of all others."""
    return bool(table.best.get(column.key) == row.backend)


def _marked(table: AnyTable, row: Any, column: Column, before: str, after: str) -> str:
    text = cell_text(row, column).replace("|", "\\|")
    return f"{before}{text}{after}" if is_best(table, row, column) else text


def _line(cells: Sequence[str], shown: Sequence[Column], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column.align == "left" else cell.rjust(width)
        for cell, column, width in zip(cells, shown, widths, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def comma_separated(tables: Sequence[AnyTable]) -> str:
    """Every figure, unrounded, of all tables in one; units are in the names. What a table has not is empty."""
    rows = [_flat(table, row) for table in tables for row in table.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(table: AnyTable, row: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {"task": table.task, "model": table.model}
    for entry in fields(row):
        value = getattr(row, entry.name)
        if str(entry.type).startswith(Estimate.__name__):
            for key, part in ((entry.name, "value"), (f"{entry.name}_low", "low"), (f"{entry.name}_high", "high")):
                flat[key] = None if value is None else getattr(value, part)
        else:
            flat[entry.name] = value
    return flat


def latex(tables: Sequence[AnyTable]) -> str:
    r"""A `table` each, with booktabs' rules: the document needs `\usepackage{booktabs}`. Notes are comments."""
    parts = []
    for table in tables:
        shown = table.columns
        align = "".join(column.align[0] for column in shown)
        head = " & ".join(escape_latex(one_line(column)) for column in shown)
        rows = [" & ".join(_latex_cell(table, row, column) for column in shown) + r" \\" for row in table.rows]
        caption = ". ".join(filter(None, [table.title, plain(table.finding or ""), *map(_sentence, table.cautions)]))
        notes = "".join(f"% {plain(note)}\n" for note in [*table.notes, *table.legend])
        lines = [
            r"\begin{table}",
            rf"\caption{{{escape_latex(caption)}.}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n" + notes)
    return "\n".join(parts)


def _sentence(caution: str) -> str:
    return f"Caution: {plain(caution)}"


def _latex_cell(table: AnyTable, row: Any, column: Column) -> str:
    text = escape_latex(cell_text(row, column))
    return rf"\textbf{{{text}}}" if is_best(table, row, column) else text


def escape_latex(text: str) -> str:
    """Text with the characters that LaTeX takes for commands, or has not in its fonts, written out."""
    return "".join(_LATEX.get(character, character) for character in text)


def as_json(tables: Sequence[AnyTable]) -> str:
    """Every figure, unrounded, with findings, cautions and notes."""
    return to_json(data(tables), indent=2)


def data(tables: Sequence[AnyTable]) -> list[dict[str, Any]]:
    """What `as_json` writes."""
    return [asdict(table) for table in tables]


FORMATS: dict[str, Callable[[Sequence[AnyTable]], str]] = {
    "md": markdown,
    "csv": comma_separated,
    "latex": latex,
    "json": as_json,
}


def write(tables: Sequence[AnyTable], folder: Path) -> list[Path]:
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
