"""How a run is shown while it goes on: two bars on a terminal, plain lines elsewhere; on stderr, so that stdout has
the tables alone."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_STYLES = {"right": "green", "done": "green", "unsupported": "yellow"}


class Show(ABC):
    """What is told of a run: each cell's start, its progress and its outcome."""

    @abstractmethod
    def start(self, cell: str) -> None:
        """A cell starts."""

    @abstractmethod
    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        """A cell that runs has got this far in a stage; `total` is 0 where a stage has no steps."""

    @abstractmethod
    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        """A cell has ended."""

    def note(self, line: str) -> None:  # noqa: B027  who shows nothing need not show this
        """Something that a person should know."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(Show):
    """One line as a cell starts, one when it ends."""

    def __init__(self, console: Console, cells: int) -> None:
        self._console, self._cells, self._since = console, cells, time.monotonic()
        self._begun = self._done = 0

    def start(self, cell: str) -> None:
        self._begun += 1
        self._print(f"[{self._begun}/{self._cells}] {cell} ...")

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        return None

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._done += 1
        left = (time.monotonic() - self._since) * (self._cells / self._done - 1)
        wait = f"; about {left / 60:.0f} min left" if left > 90 else ""
        self._print(f"[{self._done}/{self._cells}] {outcome(cell, status, reason, seconds)}{wait}")

    def note(self, line: str) -> None:
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars(Show):
    """A bar for the cells, with the time left at the pace so far, and one for each cell that runs."""

    def __init__(self, console: Console, cells: int) -> None:
        # Twice a second: a livelier display would take its time from the cell that is being timed.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            refresh_per_second=2,
            speed_estimate_period=3600.0,
            transient=True,
        )
        self._cells: Any = self._bars.add_task("cells", total=cells)
        self._running: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, cell: str) -> None:
        self._running[cell] = self._bars.add_task(f"{cell}: starting", total=None)

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        self._bars.update(self._running[cell], description=f"{cell}: {stage}", completed=done, total=total or None)

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._bars.advance(self._cells)
        self._bars.remove_task(self._running.pop(cell))
        # A Text has its style to itself; one given to `print` would colour the bars below it too.
        self._bars.console.print(Text(outcome(cell, status, reason, seconds), _STYLES.get(status, "red")))

    def note(self, line: str) -> None:
        self._bars.console.print(Text(line, "yellow"))


def outcome(cell: str, status: str, reason: str | None, seconds: float) -> str:
    """One line on how a cell ended."""
    why = f": {reason}" if reason else ""
    return f"{cell}: {status}, {seconds:.1f} s{why}"


def show(console: Console, cells: int) -> Show:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, cells) if console.is_terminal else Lines(console, cells)
