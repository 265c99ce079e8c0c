"""What the programs of studies share: `python -m crosslens.benchmarks.NAME --out PAGE.md` writes a page that says what
was found, and beside it, as .json, what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from crosslens.adapters import CrosslensError, InputError
from crosslens.tasks.parts import replace_file

_GOES_ON = ("python", "platform", "cpu", "cores", "packages", "source")
_PARTS = ".parts"


def run_program(main: Callable[..., Any]) -> None:
    """Run a command with what is on the command line; what it refuses is one line, and status 2."""
    try:
        typer.run(main)
    except CrosslensError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def chosen(names: Sequence[str], known: Iterable[str], what: str) -> list[str]:
    """The names, each once, in the order of those that are known; all of these if none is given.

    Raises:
        InputError: an unknown one; `what` says of what it is, such as `row`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise InputError(f"there is no {what} {name!r}; there are {', '.join(known)}")
    return [name for name in known if name in names] if names else known


def check_page(page: Path | None) -> None:
    """Refuse a page that cannot be written.

    Raises:
        InputError: it is no .md file in a folder that exists.
    """
    if page is not None and (page.suffix != ".md" or not page.absolute().parent.is_dir()):
        raise InputError(f"--out {page}: must be a .md file in a folder that exists")


def begun(page: Path | None, here: Mapping[str, Any], suffix: str = ".json") -> dict[str, Any]:
    """What a run that was cut has kept beside the page that it never wrote, if it can go on; else nothing.

    Args:
        here: the environment now: the same source and software, on the same kind of machine, can go on.
    """
    if page is None or page.exists():
        return {}
    try:
        kept: dict[str, Any] = json.loads(page.with_suffix(suffix).read_text(encoding="utf-8"))
        return kept if all(kept["environment"][name] == here[name] for name in _GOES_ON) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class Parts(dict[str, Any]):
    """What each part of a study measured, by its name, kept beside the page until that is written: a run that was cut
    has what it had measured.

    Args:
        page: None keeps nothing.
        here: the environment now.
    """

    def __init__(self, page: Path | None, here: Mapping[str, Any]) -> None:
        super().__init__(begun(page, here, _PARTS).get("parts", {}))
        self._page, self._here = page, here

    def add(self, name: str, measured: Any) -> None:
        """Keep what a part measured.

        Raises:
            InputError: it cannot be written; what was there stays.
        """
        self[name] = measured
        if self._page is not None:  # not as .json, from which a page can be rendered
            _write(self._page.with_suffix(_PARTS), json.dumps({"environment": self._here, "parts": self}))


def keep_measured(page: Path | None, measured: str) -> None:
    """Write what was measured so far, if there is to be a page.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    if page is not None:
        _write(page.with_suffix(".json"), measured)


def keep(page: Path | None, measured: str, rendered: str) -> None:
    """Write what was measured, and then the page, which says that all of it was; print it where there is to be none.

    Raises:
        InputError: one cannot be written; what was there stays.
    """
    if page is None:
        print(rendered, end="")
        return
    keep_measured(page, measured)
    _write(page, rendered)
    page.with_suffix(_PARTS).unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written, what was there stays: {error}") from error
