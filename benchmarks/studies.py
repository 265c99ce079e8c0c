"""What `crosslens run --suite full` measures beside the tasks: idioms, mistakes, residue, claims, known truth.

Each study is a program of its own, `python -m crosslens.benchmarks.NAME`, run in a process of its own. What was
measured lies in the run's `studies/`, with a page that is rendered from it and from nothing else.
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
from crosslens.tasks.parts import replace_file


@dataclass(frozen=True)
class Study:
    """One of them.

    Args:
        about: what it says, one line.
        render: the file with what was measured -> the page.
        kept: how that file's name ends.
    """

    about: str
    render: Callable[[Path], str]
    kept: str = ".json"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _idioms(path: Path) -> str:
    from .idioms.report import markdown

    return markdown(_read(path))


def _mistakes(path: Path) -> str:
    from .mistakes.judge import Outcome
    from .mistakes.table import table

    kept = _read(path)
    return table([Outcome(**each) for each in kept["outcomes"]], kept["versions"])


def _residue(path: Path) -> str:
    from .residue.table import markdown

    return markdown(_read(path))


def _published(path: Path) -> str:
    from .published.page import markdown

    return markdown(_read(path))


def _costs(path: Path) -> str:
    from .costs.page import markdown

    return markdown(_read(path))


def _overhead(path: Path) -> str:
    from .overhead.table import markdown

    return markdown(_read(path))


def _scaling(path: Path) -> str:
    from .scaling.table import markdown

    return markdown(_read(path))


def _correctness(path: Path) -> str:
    from .correctness.table import markdown

    return markdown(_read(path))


def _claims(path: Path) -> str:
    from .claims.__main__ import page

    return page(_read(path))


def _known_truth(path: Path) -> str:
    from .known_truth_tables import as_table, page

    facts, *records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return page(as_table(records), facts)


def _stories(path: Path) -> str:
    from .stories import markdown

    return markdown(_read(path))


def _coverage(path: Path) -> str:
    from .coverage import page

    return page(_read(path))


STUDIES = {
    "idioms": Study("what it takes to say fourteen operations in each library", _idioms),
    "mistakes": Study("what happens when a user gets it wrong", _mistakes),
    "residue": Study("what each library leaves behind on model, process and machine", _residue),
    "correctness": Study("what is right, of every site by every operation, and what is rounding", _correctness),
    "claims": Study("what libraries do when they are used directly: silent errors, each with its program", _claims),
    "known_truth": Study("who finds a planted difference, and one that is not there", _known_truth, ".jsonl"),
    "stories": Study("what was hard and is now short: the programs of examples/, and what they print", _stories),
    "coverage": Study("how often the intervals of the tables hold a ratio that is known, on simulated runs", _coverage),
    "costs": Study("what key figures, `compare`, the `Recorder` and `sweep` cost, and what they stand in for", _costs),
    "overhead": Study("what each operation costs, and what of it the common interface costs", _overhead),
    "scaling": Study("how costs grow with sites, edits, depth, width, tokens and batch, and memory by call", _scaling),
    "published": Study("figures that others published about these libraries, measured again", _published),
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
    """The page of each study that a run holds, rendered from what was measured.

    Raises:
        InputError: what was measured cannot be read.
    """
    found = {}
    for name, study in STUDIES.items():
        kept = run / "studies" / f"{name}{study.kept}"
        try:
            if kept.exists():
                found[name] = study.render(kept)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{kept} cannot be read: {error!r}") from error
    return found


def write_pages(run: Path) -> list[Path]:
    """Write each study's page beside what was measured; returns where.

    Raises:
        InputError: as `pages`, or the folder cannot be written.
    """
    written: list[Path] = []
    for name, text in pages(run).items():
        path = run / "studies" / f"{name}.md"
        try:
            replace_file(path, text.encode())
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
