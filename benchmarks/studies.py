"""What `crosslens run --suite full` measures beside the tasks: idioms, mistakes, residue, claims, known truth.

Each study is a program of its own, `python -m crosslens.benchmarks.NAME`, run in a process of its own: those that time
something alone on the machine, the others beside one another. What was measured lies in the run's `studies/`, with a
page that is rendered from it and from nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError
from crosslens.tasks.parts import replace_file

from .environment import threads
from .launch import REAPER, end
from .progress import Show

_AWAKE = 0.25  # seconds between two looks at what has finished
_LAST = 3  # lines of what a study printed that say why it failed


@dataclass(frozen=True)
class Study:
    """One of them.

    Args:
        about: what it says, one line.
        render: the file with what was measured -> the page.
        kept: how that file's name ends.
        timed: whether it times anything, and so has the machine to itself.
    """

    about: str
    render: Callable[[Path], str]
    kept: str = ".json"
    timed: bool = False


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
    "stories": Study(
        "what was hard and is now short: the programs of examples/, and what they print", _stories, timed=True
    ),
    "coverage": Study("how often the intervals of the tables hold a ratio that is known, on simulated runs", _coverage),
    "costs": Study(
        "what key figures, `compare`, the `Recorder` and `sweep` cost, and what they stand in for", _costs, timed=True
    ),
    "overhead": Study("what each operation costs, and what of it the common interface costs", _overhead, timed=True),
    "scaling": Study(
        "how costs grow with sites, edits, depth, width, tokens and batch, and memory by call", _scaling, timed=True
    ),
    "published": Study("figures that others published about these libraries, measured again", _published, timed=True),
}


def missing(names: Sequence[str], folder: Path) -> list[str]:
    """Those whose page is not in the folder, or of a part: a log is there until a study has ended well."""
    return [name for name in names if (folder / f"{name}.log").exists() or not (folder / f"{name}.md").exists()]


def run_studies(names: Sequence[str], folder: Path, show: Show, at_once: int) -> bool:
    """Run each study and keep its page as `folder/NAME.md`.

    Args:
        show: is told how each starts and ends.
        at_once: how many of those that time nothing run beside one another, on a share of the cores each.

    Returns:
        Whether each left its page: findings are no error. What one that did not has printed is kept in `NAME.log`.

    Raises:
        InputError: the folder cannot be written.
        KeyboardInterrupt: those under way are ended.
    """
    good = True
    for timed, most in ((False, at_once), (True, 1)):
        queue = [name for name in names if STUDIES[name].timed is timed]
        running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        try:
            while queue or running:
                while queue and len(running) < most:
                    name = queue.pop(0)
                    running[name] = _start(name, folder, None if timed else at_once), time.monotonic()
                    show.start(name)
                for name, (process, since) in list(running.items()):
                    if process.poll() is not None:
                        del running[name]
                        wrong = _ended(name, folder, *end(process))
                        show.finish(name, "failed" if wrong else "done", wrong, time.monotonic() - since)
                        good = good and not wrong
                time.sleep(_AWAKE)
        finally:
            for process, _ in running.values():
                end(process)
    return good


def _start(name: str, folder: Path, sharing: int | None) -> subprocess.Popen[bytes]:
    """A study's process, which ends when this one does, however that ends; what it prints goes to `NAME.log`."""
    log, page = folder / f"{name}.log", folder / f"{name}.md"
    command = [sys.executable, "-P", "-W", "ignore", "-m", f"crosslens.benchmarks.{name}", "--out", str(page)]
    env = {"OMP_NUM_THREADS": str(max(1, threads() // sharing))} if sharing else {}
    try:
        folder.mkdir(exist_ok=True)
        log.touch()
        page.unlink(missing_ok=True)  # rendered from what there is; it is there again at the end
        return subprocess.Popen(
            [*REAPER, str(log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | env,
            start_new_session=True,  # Ctrl-C is for the run, which then ends it
        )
    except OSError as error:
        raise InputError(f"{folder} cannot hold the study {name}: {error}") from error


def _ended(name: str, folder: Path, code: int, notes: Sequence[str]) -> str | None:
    """Why a study that has ended left no page; None where it did."""
    log = folder / f"{name}.log"
    if (folder / f"{name}.md").exists():
        for path in (log, log.with_name(f"{log.name}.old")):
            path.unlink(missing_ok=True)
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = " ".join([line.strip() for line in (*lines, *notes) if line.strip()][-_LAST:])
    return f"the process ended with {code} and left no page; {log} has what it printed, at last: {last or 'nothing'}"


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
