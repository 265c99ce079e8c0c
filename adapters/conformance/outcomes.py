"""What came of the kit, kept: the feature table is printed from these files, never typed.

`crosslens check NAME --save FOLDER` runs every check of a backend and writes `NAME.json`: for each capability how many
checks that need it passed, and how many failed as they must. The tests run the same checks, and hold the files that
crosslens comes with to them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crosslens.adapters.capabilities import CAPABILITIES, State
from crosslens.adapters.errors import InputError
from crosslens.adapters.inspector import Inspector

from .kit import Check, Outcome

SCHEMA = 1
SHIPPED = Path(__file__).parent / "kept"
"""Those of the backends that come with crosslens, on the versions that it is tested with."""


@dataclass(frozen=True)
class Proof:
    """One capability of one backend.

    Args:
        state: as in `capabilities.Support`; it is what the outcomes bear out, not what is declared.
        passed: checks that need it and passed.
        xfailed: checks that need it and failed as they must, since this backend lacks it.
        reason: why it is not `supported`.
        issue: address of the library's public issue, where there is one.
        gaps: families that lack what is otherwise supported, and why.
    """

    state: State
    passed: int
    xfailed: int
    reason: str = ""
    issue: str | None = None
    gaps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcomes:
    """What came of every check of one backend.

    Args:
        backend, library, version: what was checked.
        passed, xfailed: number of checks.
        cpu_seconds: processor time of the whole kit.
        capabilities: capability -> its proof.
    """

    backend: str
    library: str
    version: str
    passed: int
    xfailed: int
    cpu_seconds: float
    capabilities: dict[str, Proof]


def summarise(backend: type[Inspector], results: Iterable[tuple[Check, Outcome]], cpu_seconds: float) -> Outcomes:
    """Count the outcomes of a whole kit by capability.

    Raises:
        InputError: a check failed, or a capability has no check that bears out its state.
    """
    declared = backend.supports()
    passed, xfailed = dict.fromkeys(CAPABILITIES, 0), dict.fromkeys(CAPABILITIES, 0)
    total = {"passed": 0, "xfailed": 0}
    for check, outcome in results:
        if not outcome.good:
            raise InputError(f"{backend.name}: {check.id} {outcome.status}; only a kit without failures is kept")
        total[outcome.status] += 1
        for name in check.needs if outcome.status == "passed" else check.missing():
            (passed if outcome.status == "passed" else xfailed)[name] += 1
    for name, support in declared.items():
        if not (passed if support else xfailed)[name]:
            raise InputError(f"{backend.name}: no check bears out that {name} is {support.state}; run the whole kit")
    gaps: dict[str, dict[str, str]] = {}
    for scoped, support in backend.unsupported.items():
        name, _, family = scoped.partition("@")
        if family:
            gaps.setdefault(name, {})[family] = support.reason
    proofs = {
        name: Proof(support.state, passed[name], xfailed[name], support.reason, support.issue, gaps.get(name, {}))
        for name, support in declared.items()
    }
    library = backend.library or "torch"
    return Outcomes(backend.name, library, _version(library), **total, cpu_seconds=cpu_seconds, capabilities=proofs)


def expected(backend: type[Inspector], checks: Sequence[Check]) -> Outcomes:
    """What `summarise` gives if every check ends as the backend declares: a kept file that differs is out of date."""
    results = [(check, Outcome("xfailed" if check.missing() else "passed")) for check in checks]
    return summarise(backend, results, 0.0)


def save(outcomes: Outcomes, folder: Path = SHIPPED) -> Path:
    """Write `NAME.json`; returns its path.

    Raises:
        InputError: the folder cannot be written.
    """
    path = folder / f"{outcomes.backend}.json"
    part = path.with_name(f".{path.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"schema": SCHEMA, **asdict(outcomes)}, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"the outcomes cannot be written to {folder}: {error}") from error
    return path


def load(backend: str, folder: Path = SHIPPED) -> Outcomes | None:
    """The kept outcomes of a backend, None where there are none.

    Raises:
        InputError: a file that this version of crosslens cannot read.
    """
    path = folder / f"{backend}.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("schema") != SCHEMA:
            raise InputError(f"{path} is of another version of crosslens; `crosslens check {backend} --save` makes it")
        proofs = {name: Proof(**proof) for name, proof in found.pop("capabilities").items()}
        return Outcomes(**found, capabilities=proofs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
