"""How a run is shown while it goes on: two bars on a terminal, plain lines elsewhere; on stderr, so that stdout has
the tables alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

_STYLES = {"right": "green", "done": "green", "unsupported": "yellow"}


class Show(ABC):
    """What is told of a run: each cell's start, its progress and its outcome."""

    @abstractmethod
    def start(self, cell: str) -> None:
        """A cell starts."""

    @abstractmethod
    def follow(self, stage: str, done: int, total: int) -> None:
        """The cell that runs has got this far in a stage; `total` is 0 where a stage has no steps."""

    @abstractmethod
    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        """A cell has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(Show):
    """One line as a cell starts, one when it ends."""

    def __init__(self, console: Console, cells: int) -> None:
        self._console, self._cells, self._number = console, cells, 0

    def start(self, cell: str) -> None:
        self._number += 1
        self._print(f"[{self._number}/{self._cells}] {cell} ...")

    def follow(self, stage: str, done: int, total: int) -> None:
        return None

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._print(f"[{self._number}/{self._cells}] {outcome(cell, status, reason, seconds)}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars(Show):
    """A bar for the cells, and one for what the current cell is doing."""

    def __init__(self, console: Console, cells: int) -> None:
        # Twice a second: a livelier display would take its time from the cell that is being timed.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
            transient=True,
        )
        self._cells: Any = self._bars.add_task("cells", total=cells)
        self._cell: Any = self._bars.add_task("", total=None, visible=False)
        self._name = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, cell: str) -> None:
        self._name = cell
        self._bars.reset(self._cell, total=None, description=f"{cell}: starting", visible=True)

    def follow(self, stage: str, done: int, total: int) -> None:
        self._bars.update(self._cell, description=f"{self._name}: {stage}", completed=done, total=total or None)

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._bars.advance(self._cells)
        self._bars.update(self._cell, visible=False)
        # A Text has its style to itself; one given to `print` would colour the bars below it too.
        self._bars.console.print(Text(outcome(cell, status, reason, seconds), _STYLES.get(status, "red")))


def outcome(cell: str, status: str, reason: str | None, seconds: float) -> str:
    """One line on how a cell ended."""
    why = f": {reason}" if reason else ""
    return f"{cell}: {status}, {seconds:.1f} s{why}"


def show(console: Console, cells: int) -> Show:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, cells) if console.is_terminal else Lines(console, cells)
