"""The headline of each backend: one line of counts, each of which a later section shows in full."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError
from crosslens.benchmarks.store import StoredRun
from crosslens.benchmarks.studies import STUDIES
from crosslens.benchmarks.tables import Table as Results

from .blocks import Table

Counts = dict[str, str]
"""Backend -> what a column says of it."""


def headline(run: StoredRun, tables: Sequence[Results], folder: Path) -> Table:
    """One row for each backend of the run, and for each that only a study used.

    Raises:
        InputError: a study's file is damaged.
    """
    columns: dict[str, Counts] = {}
    versions: dict[str, str] = {}
    rows = [row for table in tables for row in table.rows if not row.control]
    of: Counter[str] = Counter(row.backend for row in rows)
    for title, counted in (
        ("right", ("right",)),
        ("wrong", ("wrong",)),
        ("failed", ("crashed", "out-of-memory", "timeout", "failed", "vacuous")),
        ("cannot or not run", ("unsupported", "skipped", "not run")),
    ):
        hits = Counter(row.backend for row in rows if row.result.partition(" (")[0] in counted)
        columns[title] = {name: f"{hits[name]} of {of[name]}" if title == "right" else str(hits[name]) for name in of}
    columns["ratio to bare, least and most"] = _ratios(tables)
    for name, (title, count) in _STUDIES.items():
        kept = folder / "studies" / f"{name}{STUDIES[name].kept if name in STUDIES else '.json'}"
        if kept.exists():
            try:
                found = json.loads(kept.read_text(encoding="utf-8"))
                columns[title] = count(found)
                if name == "mistakes":
                    versions = {_backend(k): str(v).partition("+")[0] for k, v in found["versions"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{kept} cannot be read: {error!r}") from error
    asked = run.facts["arguments"]
    names = dict.fromkeys(
        [*asked["backends"], *asked["skipped"], *(name for each in columns.values() for name in each)]
    )
    versions |= {row.backend: row.version.partition("+")[0] for row in rows if row.version}
    titles = [title for title, counts in columns.items() if counts]
    body = [[name, versions.get(name, ""), *(columns[title].get(name, "") for title in titles)] for name in names]
    return Table(
        "Headline of each backend", ["backend", "version", *titles], body, frozenset(range(2, 2 + len(titles)))
    )


def _ratios(tables: Sequence[Results]) -> Counts:
    """Smallest and largest median ratio over the tasks that a backend got right, with the task."""
    found: dict[str, list[tuple[float, str]]] = {}
    for table in tables:
        for row in table.rows:
            if row.ratio is not None and not row.control:
                found.setdefault(row.backend, []).append((row.ratio.value, table.task))
    return {
        name: f"{min(each)[0]:.2f} {min(each)[1]}, {max(each)[0]:.2f} {max(each)[1]}" for name, each in found.items()
    }


def _backend(library: str) -> str:
    """A distribution's name as the backend is called."""
    return "hooks" if library == "torch" else library.replace("-", "_")


def _counted(names: Iterable[str], hits: Iterable[str]) -> Counts:
    of, found = Counter(map(_backend, names)), Counter(map(_backend, hits))
    return {name: f"{found[name]} of {count}" for name, count in of.items() if not name.startswith("crosslens")}


def _correctness(kept: Any) -> Counts:
    from crosslens.benchmarks.correctness.judge import BAD, CLASSES

    names, bad = list(kept["backends"]), {CLASSES.index(name) for name in BAD}
    of, found = (
        Counter(names[row[0]] for row in kept["rows"]),
        Counter(names[r[0]] for r in kept["rows"] if r[3] in bad),
    )
    return {name: f"{found[name]} of {count}" for name, count in of.items()}


def _claims(kept: Any) -> Counts:
    found = Counter(_backend(each["library"]) for each in kept if each["holds"])
    return {name: str(count) for name, count in found.items()}


def _mistakes(kept: Any) -> Counts:
    made = [each for each in kept["outcomes"] if each["kind"] != "n/a"]
    return _counted((e["library"] for e in made), (e["library"] for e in made if e["kind"] == "silent"))


def _residue(kept: Any) -> Counts:
    sides = {use: found["clean"] for use, found in kept["uses"].items()}
    return {
        _backend(use): str(len(side["differences"]))
        for use, side in sides.items()
        if "differences" in side and use != "no library" and not use.startswith("crosslens ")
    }


def _idioms(kept: Any) -> Counts:
    return _counted((e["library"] for e in kept), (e["library"] for e in kept if e["outcome"] == "right"))


NOTES = (
    "right, wrong, failed, cannot or not run: tasks. Ratio: the smallest and the largest median over the tasks that it "
    "got right, each with its task; no mean is taken here, since backends differ in the tasks that they can do. "
    "answers not right: wrong or an error, of the correctness study. All of these are through the Inspector.",
    "silent errors: programs that follow its documentation and are silently wrong. mistakes silent: of those that can "
    "be made with it. left behind: kinds of differences after its own clean-up. operations: said rightly, of all "
    "operations and families. All of these are of the library used directly. Blank where nothing was measured.",
)
_STUDIES: dict[str, tuple[str, Callable[[Any], Counts]]] = {
    "correctness": ("answers not right", _correctness),
    "claims": ("silent errors", _claims),
    "mistakes": ("mistakes silent", _mistakes),
    "residue": ("left behind", _residue),
    "idioms": ("operations", _idioms),
}
