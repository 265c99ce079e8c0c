"""A run's folder, read for the paper: the run itself, its studies, and what came of the conformance kit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError
from crosslens.adapters.conformance.outcomes import SHIPPED, load

from ..matrix import Backend
from ..store import StoredRun, read_facts, read_run


@dataclass(frozen=True)
class Results:
    """What the paper is rendered from.

    Args:
        folder: of the run.
        run: its facts, cells and samples.
        studies: name -> what was measured, as JSON; of the known-truth study a list, its settings first. A study that
            the run does not hold is not there.
        backends: what came of the conformance kit, a column a backend.
    """

    folder: Path
    run: StoredRun
    studies: Mapping[str, Any]
    backends: list[Backend]

    @property
    def machine(self) -> str:
        """Such as `an AMD EPYC with 2 cores`."""
        found = self.run.facts["environment"]
        article = "an" if found["cpu"][:1].lower() in "aeiou" else "a"
        return f"{article} {found['cpu']} with {found['cores']['physical'] or found['cores']['logical']} cores"


def read(folder: Path, outcomes: Path = SHIPPED) -> Results:
    """Read a run's folder.

    Args:
        folder: as `crosslens run` wrote it.
        outcomes: what `crosslens check NAME --save` wrote.

    Raises:
        InputError: it holds no run, or a file of it is damaged.
    """
    run = read_run(folder)
    studies = {path.stem: _kept(path) for path in sorted((folder / "studies").glob("*.json*"))}
    backends = []
    for path in sorted(outcomes.glob("*.json")):
        found = load(path.stem, outcomes)
        assert found is not None
        backends.append(Backend(found.backend, found.library, found.version, found))
    if not backends:
        raise InputError(f"{outcomes} holds no outcomes; `crosslens check NAME --save {outcomes}` writes them")
    return Results(folder, run, studies, backends)


@contextmanager
def reading(results: Results, study: str | None) -> Iterator[None]:
    """Say which file it was where what a study kept cannot be understood.

    Raises:
        InputError: instead of whatever was raised.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        where = results.folder / ("studies" if study else "") / (study or "run.json")
        raise InputError(f"{where} is not what this version of crosslens reads: {error!r}; measure it again") from error


def newest(results: Path) -> Path:
    """The run of a folder of runs that was started last.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    if not results.is_dir():
        raise InputError(f"there is no folder {results}; name a run's folder by --results")
    runs = {path.parent: str(read_facts(path.parent).get("started", "")) for path in results.glob("*/run.json")}
    if not runs:
        raise InputError(f"{results} holds no run; name a run's folder by --results")
    return max(runs, key=lambda folder: (runs[folder], folder.name))


def _kept(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
