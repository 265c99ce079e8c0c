"""How a run is shown while it goes on: two bars on a terminal, plain lines elsewhere; on stderr, so that stdout has
the tables alone."""

from __future__ import annotations

import math
import time
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


class Pace:
    """The time left, at the mean of the cells that ran so far and with as many beside one another as there were.

    Args:
        cells: that are to come. Those that end at once, because their backend cannot do them, tell nothing of the pace.
    """

    def __init__(self, cells: int) -> None:
        self._left, self._running = cells, dict[str, float]()
        self._ran, self._seconds, self._began = 0, 0.0, math.inf

    def start(self, cell: str) -> None:
        self._running[cell] = time.monotonic()

    def finish(self, cell: str, seconds: float) -> None:
        since = self._running.pop(cell, math.inf)
        self._left -= 1
        if seconds > 0:
            self._ran += 1
            self._seconds += seconds
            self._began = min(self._began, since)

    def seconds(self) -> float | None:
        """None as long as nobody can tell."""
        if not self._ran:
            return None
        mean, now = self._seconds / self._ran, time.monotonic()
        ages = [now - since for since in list(self._running.values())]
        # not how many run now: one that ends may be told after the next has started
        beside = (self._seconds + sum(ages)) / max(now - self._began, mean)
        return (self._left * mean - sum(min(mean, age) for age in ages)) / max(1, min(beside, self._left))

    def __str__(self) -> str:
        left = self.seconds()
        return "" if left is None or left < 90 else f"about {left / 60:.0f} min left"


class Lines(Show):
    """One line as a cell starts, one when it ends."""

    def __init__(self, console: Console, cells: int) -> None:
        self._console, self._cells, self._pace = console, cells, Pace(cells)
        self._begun = self._done = 0

    def start(self, cell: str) -> None:
        self._begun += 1
        self._pace.start(cell)
        self._print(f"[{self._begun}/{self._cells}] {cell} ...")

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        return None

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._done += 1
        self._pace.finish(cell, seconds)
        wait = str(self._pace)
        self._print(f"[{self._done}/{self._cells}] {outcome(cell, status, reason, seconds)}{wait and f'; {wait}'}")

    def note(self, line: str) -> None:
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars(Show):
    """A bar for the cells, with the time left at the pace so far, and one for each cell that runs."""

    def __init__(self, console: Console, cells: int, called: str) -> None:
        # Twice a second: a livelier display would take its time from the cell that is being timed.
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            refresh_per_second=2,
            transient=True,
        )
        self._pace = Pace(cells)
        self._cells: Any = self._bars.add_task(called, total=cells, left="")
        self._running: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, cell: str) -> None:
        self._pace.start(cell)
        self._running[cell] = self._bars.add_task(f"{cell}: starting", total=None, left="")

    def follow(self, cell: str, stage: str, done: int, total: int) -> None:
        self._bars.update(self._running[cell], description=f"{cell}: {stage}", completed=done, total=total or None)

    def finish(self, cell: str, status: str, reason: str | None, seconds: float) -> None:
        self._pace.finish(cell, seconds)
        self._bars.update(self._cells, advance=1, left=str(self._pace))
        self._bars.remove_task(self._running.pop(cell))
        # A Text has its style to itself; one given to `print` would colour the bars below it too.
        self._bars.console.print(Text(outcome(cell, status, reason, seconds), _STYLES.get(status, "red")))

    def note(self, line: str) -> None:
        self._bars.console.print(Text(line, "yellow"))


def outcome(cell: str, status: str, reason: str | None, seconds: float) -> str:
    """One line on how a cell ended."""
    why = f": {reason}" if reason else ""
    return f"{cell}: {status}, {seconds:.1f} s{why}"


def show(console: Console, cells: int, called: str = "cells") -> Show:
    """Bars on a terminal, lines elsewhere; `called` is what `cells` counts."""
    return Bars(console, cells, called) if console.is_terminal else Lines(console, cells)
