"""`crosslens paper`: render the paper's numbers, tables and figures from a run, or check those that lie there."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from .check import check, read_sources
from .generate import FOLDER, generated, write
from .sources import newest, read


def paper_command(results: Path | None, paper: Path, *, only_check: bool) -> bool:
    """Render to `paper/generated`, or say what differs.

    Args:
        results: a run's folder; None for the newest in `results`.
        paper: folder of the paper's sources.
        only_check: write nothing.

    Returns:
        Whether all is as it must be.

    Raises:
        InputError: before anything is written, for folders that cannot be used.
    """
    console = Console(stderr=True)
    read_sources(paper)
    found = read(results or newest(Path("results")))
    made = generated(found)
    if not only_check:
        changed = write(made, paper)
        _say(console, f"{paper / FOLDER}: {len(changed) or 'no'} files changed, of {found.folder}")
    wrong = check(made, paper)
    for line in wrong:
        _say(console, line, "red")
    if not wrong:
        _say(console, f"the paper says what {found.folder} says, and no number in it is typed")
    return not wrong


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
