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

from .blocks import Block, Table, listing

Counts = dict[str, str]
"""Backend -> what a column says of it."""


def headline(run: StoredRun, tables: Sequence[Results], folder: Path) -> list[Block]:
    """One row for each backend of the run, and for each that only a study used; and what its columns hold.

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
        ("cannot", ("unsupported", "skipped", "not run")),
    ):
        hits = Counter(row.backend for row in rows if row.result.partition(" (")[0] in counted)
        columns[title] = {name: f"{hits[name]} of {of[name]}" if title == "right" else str(hits[name]) for name in of}
    columns[_RATIO] = _ratios(tables)
    for name, (title, _, count) in _STUDIES.items():
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
    head = ["backend", "version", *titles]
    table = Table("Headline of each backend", head, body, frozenset(range(2, len(head))))
    notes = [
        "right, wrong, failed, cannot: tasks, each on a model, through the Inspector; cannot: unsupported, skipped or "
        "not run."
    ]
    if _RATIO in titles:
        notes.append(
            f"{_RATIO}: the smallest and the largest median over the tasks that it got right; no mean is taken here, "
            "since backends differ in the tasks that they can do."
        )
    notes += [f"{title}: {about}" for title, about, _ in _STUDIES.values() if title in titles]
    return [table, listing(notes)]


def _ratios(tables: Sequence[Results]) -> Counts:
    """Smallest and largest median ratio over the tasks that a backend got right."""
    found: dict[str, list[float]] = {}
    for table in tables:
        for row in table.rows:
            if row.ratio is not None and not row.control:
                found.setdefault(row.backend, []).append(row.ratio.value)
    return {name: " to ".join(dict.fromkeys((f"{min(v):.2f}", f"{max(v):.2f}"))) for name, v in found.items()}


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


_RATIO = "ratio to bare"
_STUDIES: dict[str, tuple[str, str, Callable[[Any], Counts]]] = {
    "correctness": (
        "answers not right",
        "wrong answers and errors of the correctness study, through the Inspector.",
        _correctness,
    ),
    "claims": (
        "silent errors",
        "programs that follow the library's documentation, without the Inspector, and are silently wrong.",
        _claims,
    ),
    "mistakes": (
        "mistakes silent",
        "of the mistakes that can be made with the library used directly, those that give a wrong result silently.",
        _mistakes,
    ),
    "residue": (
        "left behind",
        "kinds of differences after one use of the library directly, and its own clean-up.",
        _residue,
    ),
    "idioms": ("operations", "said rightly with the library used directly, of all operations and families.", _idioms),
}
"""Study -> its column, what that holds, and how it is counted."""
