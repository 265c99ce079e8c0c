"""A bar for long work, on stderr, so that what is printed stays clean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .base import Progress


@contextmanager
def progress_bar(what: str, wanted: Progress | bool | None = True) -> Iterator[Progress]:
    """What a `progress` argument stands for: a function is itself, True a bar on a terminal, None or False nothing.

    Gives a function that is told (done, in all; 0 where that is not known).
    """
    if callable(wanted):
        yield wanted
        return
    if not wanted:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # the speed is that of the last five minutes: batches differ in length
    shown = console.is_terminal or console.is_jupyter
    with Bars(*columns, console=console, transient=True, disable=not shown, speed_estimate_period=300) as bars:
        bar = bars.add_task(what, total=None)

        def told(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total or None)

        yield told
