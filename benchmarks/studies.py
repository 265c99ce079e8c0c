"""What `crosslens run --suite full` measures beside the tasks: idioms, mistakes, residue, claims, known truth.

Each study is a program of its own, `python -m crosslens.benchmarks.NAME`, run in a process of its own. Its page, and
what was measured, lie in the run's `studies/`; pages are rendered again from what was measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError


@dataclass(frozen=True)
class Study:
    """One of them.

    Args:
        about: what it says, one line.
        render: what was measured -> the page; None where the page alone is kept.
    """

    about: str
    render: Callable[[Any], str] | None = None


def _idioms(kept: Any) -> str:
    from .idioms.report import markdown

    return markdown(kept)


def _mistakes(kept: Any) -> str:
    from .mistakes.judge import Outcome
    from .mistakes.table import table

    return table([Outcome(**each) for each in kept["outcomes"]], kept["versions"])


def _residue(kept: Any) -> str:
    from .residue.table import markdown

    return markdown(kept)


STUDIES = {
    "idioms": Study("what it takes to say fourteen operations in each library", _idioms),
    "mistakes": Study("what happens when a user gets it wrong", _mistakes),
    "residue": Study("what each library leaves behind on model, process and machine", _residue),
    "claims": Study("what libraries do when they are used directly: each silent error found, with its program"),
    "known_truth": Study("who finds a planted difference, and who finds one that is not there"),
}


def run_study(name: str, folder: Path) -> str | None:
    """Run a study and keep its page as `folder/NAME.md`, unless it is there.

    Returns:
        What went wrong, if something did: findings are no error.

    Raises:
        InputError: the folder cannot be written.
    """
    page = folder / f"{name}.md"
    if page.exists():
        return None
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error}") from error
    command = [sys.executable, "-P", "-W", "ignore", "-m", f"crosslens.benchmarks.{name}", "--out", str(page)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not page.exists():
        return f"the process ended with {done.returncode} and left no page"
    return None


def pages(run: Path) -> dict[str, str]:
    """The page of each study that a run holds, rendered from what was measured where that is kept.

    Raises:
        InputError: what was measured cannot be read.
    """
    found = {}
    for name, study in STUDIES.items():
        page, kept = run / "studies" / f"{name}.md", run / "studies" / f"{name}.json"
        try:
            if study.render is not None and kept.exists():
                found[name] = study.render(json.loads(kept.read_text(encoding="utf-8")))
            elif page.exists():
                found[name] = page.read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{kept} cannot be read: {error!r}") from error
    return found


def write_pages(run: Path) -> list[Path]:
    """Write the studies' pages beside the tables; returns where.

    Raises:
        InputError: as `pages`, or the folder cannot be written.
    """
    written: list[Path] = []
    for name, text in pages(run).items():
        path = run / "tables" / f"{name}.md"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error
        written.append(path)
    return written


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        InputError: an unknown one.
    """
    for name in names:
        if name not in STUDIES:
            raise InputError(f"there is no study {name!r}; there are {', '.join(STUDIES)}")
    return tuple(dict.fromkeys(names))
