"""A run as its folder holds it: read, and checked against what `schema.py` says of each file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from crosslens.adapters import InputError

from .schema import FORMAT, CellLine, Facts, check, check_samples

Torn = Literal["refuse", "leave out"]
_AGAIN = "copy the folder again"


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder holds it.

    Args:
        facts: of run.json.
        cells: of cells.jsonl, in the order in which they finished.
        samples: of samples.parquet, of these cells alone.
    """

    facts: dict[str, Any]
    cells: list[dict[str, Any]]
    samples: pd.DataFrame


def read_run(path: Path, *, torn: Torn = "refuse") -> StoredRun:
    """A run's folder, checked.

    Args:
        torn: what to do with a last line that was being written when the run was cut.

    Raises:
        InputError: no folder, no run in it, or a file of it is damaged; says which, where, and what to do.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; name the folder of a run, as `crosslens run --out` wrote it")
    facts = read_facts(path)
    cells = _cells(path / "cells.jsonl", torn)
    return StoredRun(facts, cells, _samples(path / "samples.parquet", cells))


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json says, checked.

    Raises:
        InputError: it is not there, damaged, or of another version.
    """
    path = folder / "run.json"
    try:
        facts = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}; {_AGAIN}") from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise InputError(f"{path} is not the run.json of a run: it has no `format`")
    if facts["format"] != FORMAT:
        newer = isinstance(facts["format"], int) and facts["format"] > FORMAT
        do = "upgrade crosslens to read it" if newer else "run it again, or read it with the crosslens that wrote it"
        raise InputError(f"{path} has format {facts['format']!r}; this version reads {FORMAT}: {do}")
    check(Facts, facts, str(path), "damaged")
    return facts


def check_whole(path: Path, run: StoredRun) -> None:
    """Raise unless every cell is one of the run's, and its results are there as they were written.

    Raises:
        InputError: one is not, is missing or differs; says which, and what to do.
    """
    for number, cell in enumerate(run.cells, start=1):
        if cell["id"] not in run.facts["cells"]:
            where = f"{path / 'cells.jsonl'}, line {number}"
            raise InputError(f"{where}: cell {cell['id']!r} is none that run.json names; {_AGAIN}, or delete the line")
        for suffix, digest in cell["files"].items():
            file = path / "results" / f"{cell['id']}.{suffix}"
            wrong = "is missing" if not file.exists() else "is not what was written" if sha256(file) != digest else None
            if wrong:
                raise InputError(f"{file} {wrong}; {_AGAIN}, or {_forget(path / 'cells.jsonl', number)}")


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget(path: Path, line: int) -> str:
    return f"delete line {line} of {path} to have --resume run its cell anew"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no run: it has no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _cells(path: Path, torn: Torn) -> list[dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    *lines, rest = _text(path).split("\n")
    if rest and torn == "refuse":
        lines.append(rest)
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            cell = json.loads(line)
        except json.JSONDecodeError as error:
            cut = " (torn: the run was stopped while it was written)" if rest and number == len(lines) else ""
            raise InputError(f"{where}, is no JSON{cut}: {error}; delete the line to read the other cells") from error
        check(CellLine, cell, where, "no cell")
        if cell["id"] in cells:
            raise InputError(f"{where}: a second cell with id {cell['id']!r}")
        cells[cell["id"]] = cell
    return list(cells.values())


def _samples(path: Path, cells: list[dict[str, Any]]) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path.parent} holds no whole run: it has no {path.name}; {_AGAIN}")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow's own errors, of many types
        raise InputError(f"{path} cannot be read as parquet: {error}; {_AGAIN}") from error
    check_samples(frame, path)
    counts = frame["cell"].value_counts()
    for number, cell in enumerate(cells, start=1):
        if (held := int(counts.get(cell["id"], 0))) != cell["samples"]:
            raise InputError(
                f"{path} has {held} samples of cell {cell['id']!r}, which had {cell['samples']}; {_AGAIN}, or "
                + _forget(path.with_name("cells.jsonl"), number)
            )
    return frame[frame["cell"].isin([cell["id"] for cell in cells])].reset_index(drop=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; NaN and infinities become text, which `float()` reads back."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, str):  # half a surrogate pair, as a library may have it in an error, has no bytes
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
