"""A run's folder: written as cells finish, read back and checked.

    run.json            what the run was asked to do, and on what machine
    cells.jsonl         one finished cell a line, each with a unique `id`
    samples.parquet     raw timing samples: cell, pair, bare_first, bare_s, step_s (seconds a call)
    results/ID.npz      the cell's result arrays
    results/ID.csv      the same as the task's own table
    tables/             rendered from the above

A cell's line is written last: a cell that has a line has all its files.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters import InputError

FORMAT = 1
SAMPLE_TYPES = {"cell": "str", "pair": "int64", "bare_first": "bool", "bare_s": "float64", "step_s": "float64"}


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder holds it.

    Args:
        facts: of run.json.
        cells: of cells.jsonl, in the order in which they finished.
        samples: of samples.parquet.
    """

    facts: dict[str, Any]
    cells: list[dict[str, Any]]
    samples: pd.DataFrame


def refuse_out(out: Path) -> None:
    """Raise unless a run can be written to `out`; changes nothing.

    Raises:
        InputError: it is a file, not empty, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        if not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder that is new or empty")
        held = sorted(path.name for path in out.iterdir())
        if {"run.json", "cells.jsonl"} & set(held):
            raise InputError(f"--out {out} already holds a run; name another folder. Nothing was changed")
        if held:
            raise InputError(f"--out {out} is not empty ({held[0]}, ...); name a folder that is new or empty")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {out} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no right to write in {nearest}")


class RunFolder:
    """The folder of a run that is under way.

    Args:
        path: new or empty.
        facts: what run.json says.

    Raises:
        InputError: as `refuse_out`, or the system refuses.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        refuse_out(path)
        self.path = path
        self._samples: list[dict[str, Any]] = []
        try:
            (path / "results").mkdir(parents=True, exist_ok=True)
            with (path / "run.json").open("x", encoding="utf-8") as file:  # x: never over another run's
                file.write(to_json({"format": FORMAT, **facts}, indent=2) + "\n")
            self._write_samples()
            (path / "cells.jsonl").touch()
        except OSError as error:
            raise InputError(f"--out {path} cannot be written: {error}") from error

    def scratch(self, cell_id: str) -> Path:
        """A new folder for one process's files, on the same file system."""
        return Path(tempfile.mkdtemp(prefix=f".{cell_id}.", dir=self.path))

    def result(self, cell_id: str) -> Path:
        """Where a cell's result arrays are kept."""
        return self.path / "results" / f"{cell_id}.npz"

    def add(self, cell: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], scratch: Path) -> None:
        """Keep a finished cell: its samples and files first, its line last.

        Raises:
            InputError: the disk is full, or the folder is gone.
        """
        try:
            self._add(cell, samples, scratch)
        except OSError as error:
            raise InputError(f"cannot go on writing to {self.path}: {error}; what is there already is kept") from error

    def _add(self, cell: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], scratch: Path) -> None:
        mine = [{"cell": cell["id"], "pair": i, **sample} for i, sample in enumerate(samples)]
        if mine:
            self._samples += mine
            self._write_samples()
        for suffix in (".npz", ".csv"):
            made = scratch / f"result{suffix}"
            if made.exists():
                os.replace(made, self.result(cell["id"]).with_name(cell["id"] + suffix))
        line = (to_json(cell) + "\n").encode()
        with (self.path / "cells.jsonl").open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(scratch)

    def _write_samples(self) -> None:
        frame = pd.DataFrame(self._samples, columns=list(SAMPLE_TYPES)).astype(SAMPLE_TYPES)
        part = self.path / ".samples.parquet.part"
        frame.to_parquet(part, index=False)
        os.replace(part, self.path / "samples.parquet")


def read_run(path: Path) -> StoredRun:
    """A run's folder, checked.

    Raises:
        InputError: no folder, no run in it, or a file of it is damaged; says which and where.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; name the folder of a run, as `crosslens run --out` wrote it")
    facts = _facts(path / "run.json")
    cells = _cells(path / "cells.jsonl")
    samples = _samples(path / "samples.parquet")
    return StoredRun(facts, cells, samples)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no run: it has no {path.name}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise InputError(f"{path} is not the run.json of a run: it has no `format`")
    if facts["format"] != FORMAT:
        raise InputError(f"{path} has format {facts['format']!r}; this version reads {FORMAT}")
    for key in ("arguments", "environment", "random_models", "cells"):
        if key not in facts:
            raise InputError(f"{path} is damaged: it has no `{key}`")
    return facts


def _cells(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = []
    ids: set[str] = set()
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        try:
            cell = json.loads(line)
        except json.JSONDecodeError as error:
            torn = " (torn: the run was stopped while it was written)" if number == len(lines) else ""
            raise InputError(
                f"{path}, line {number}, is no JSON{torn}: {error}; delete the line to read the other cells"
            ) from error
        missing = {"id", "kind", "task", "model", "backend", "status"} - set(cell if isinstance(cell, dict) else ())
        if missing:
            raise InputError(f"{path}, line {number}, is no cell: it has no {', '.join(sorted(missing))}")
        if cell["id"] in ids:
            raise InputError(f"{path}, line {number}: a second cell with id {cell['id']!r}")
        ids.add(cell["id"])
        cells.append(cell)
    return cells


def _samples(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path.parent} holds no whole run: it has no {path.name}")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow's own errors, of many types
        raise InputError(f"{path} cannot be read as parquet: {error}") from error
    if missing := set(SAMPLE_TYPES) - set(frame.columns):
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}")
    return frame


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; NaN and infinities become text, which `float()` reads back."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
