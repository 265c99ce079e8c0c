"""Tables on a terminal, whole at any width that holds their most important columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from .columns import Column, cell_text
from .render import AnyTable, is_best

_LEAST = 5  # characters of a column
_RESULT = 12  # characters that a result may be broken to


def show(console: Console, tables: Sequence[AnyTable]) -> None:
    """Print tables, each with its cautions, finding and notes."""
    for table in tables:
        shown, gap = _fitting(table, console.width)
        grid = RichTable(box=SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False, pad_edge=False)
        for column in shown:
            grid.add_column(column.header, justify=column.align, no_wrap=column.key != "result", min_width=_LEAST)
        for row in table.rows:
            cells = [Text(cell_text(row, c), style="bold" if is_best(table, row, c) else "") for c in shown]
            style = "" if row.result == "right" else "dim" if row.result in ("", "skipped", "not run") else "yellow"
            grid.add_row(*cells, style=style)
        console.print(Text(f"\n{table.title}\n", style="bold"))
        for caution in table.cautions:
            console.print(Text.assemble(("Caution: ", "bold"), f"{caution}\n", style="yellow"))
        console.print(grid)
        if table.finding:
            console.print(Text.assemble(("\nFinding: ", "bold"), table.finding))
        _print_notes(console, table.notes)
        if table is tables[-1] or table.legend != tables[-1].legend:  # once, where it is the same for all
            _print_notes(console, table.legend)


def _fitting(table: AnyTable, width: int) -> tuple[list[Column], int]:
    """The columns for which there is room, and the space between them."""
    shown = list(table.columns)
    for spare in range(max(column.spare for column in shown), -1, -1):
        for gap in (1, 0):
            if sum(_width(table, column) + 1 + gap for column in shown) - 1 - gap <= width or not spare:
                return shown, gap
        shown = [column for column in shown if column.spare < spare]
    raise AssertionError("not reached: what cannot be spared is shown")


def _width(table: AnyTable, column: Column) -> int:
    texts = column.header.split("\n") + [cell_text(row, column) for row in table.rows]
    widest = max(map(len, texts))
    return max(_LEAST, min(widest, _RESULT) if column.key == "result" else widest)


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
