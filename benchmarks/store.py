"""A run's folder: written as cells finish, read back and checked.

    run.json            what the run was asked to do, and on what machine
    cells.jsonl         one finished cell a line, each with a unique `id`
    samples.parquet     raw timing samples: cell, block, order, bare_s, hooks_s, step_s (seconds a call; NaN: not timed)
    results/ID.npz      the cell's result arrays
    results/ID.csv      the same as the task's own table
    tables/             rendered from the above

A cell's line is written last: a cell that has a line has all its files.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout

from crosslens.adapters import InputError

FORMAT = 2
_LOCK = ".lock"
SAMPLE_TYPES = {
    "cell": "str",
    "block": "int64",
    "order": "str",
    "bare_s": "float64",
    "hooks_s": "float64",
    "step_s": "float64",
}


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
            raise InputError(
                f"--out {out} already holds a run; name another folder, or go on with it by --resume. "
                "Nothing was changed"
            )
        if held:
            raise InputError(f"--out {out} is not empty ({held[0]}, ...); name a folder that is new or empty")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {out} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no right to write in {nearest}")


class RunFolder:
    """The folder of a run that is under way; held by one process at a time.

    Args:
        path: new or empty.
        facts: what run.json says.

    Attributes:
        finished: cell id -> status of the cells that it holds already.

    Raises:
        InputError: as `refuse_out`, or the system refuses.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        refuse_out(path)
        self.path = path
        self.finished: dict[str, str] = {}
        self._samples: list[dict[str, Any]] = []
        try:
            (path / "results").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            with (path / "run.json").open("x", encoding="utf-8") as file:  # x: never over another run's
                file.write(to_json({"format": FORMAT, **facts}, indent=2) + "\n")
            self._write_samples()
            (path / "cells.jsonl").touch()
        except OSError as error:
            raise InputError(f"--out {path} cannot be written: {error}") from error

    @classmethod
    def resume(cls, path: Path, facts: Mapping[str, Any]) -> Self:
        """Take up a run that was cut short: what is torn or belongs to no finished cell is removed.

        Args:
            facts: what run.json would say if the run began now.

        Raises:
            InputError: no run is there, another process writes to it, or it was made with other settings, versions or
                on another machine; says what differs.
        """
        if not (path / "run.json").exists():
            raise InputError(f"--resume: {path} holds no run; start one without --resume")
        folder = cls.__new__(cls)
        folder.path = path
        try:
            folder._lock = _lock(path)
            _drop_torn_line(path / "cells.jsonl")
            run = read_run(path)
            if differing := _differences(run.facts, facts):
                raise InputError(f"--resume: {path} was made otherwise, and its cells cannot be mixed: {differing}")
            folder.finished = {cell["id"]: cell["status"] for cell in run.cells}
            own = run.samples[run.samples["cell"].isin(list(folder.finished))]
            folder._samples = [{str(key): value for key, value in row.items()} for row in own.to_dict("records")]
            folder._write_samples()
            for scratch in (p for p in path.glob(".*.*") if p.is_dir()):
                shutil.rmtree(scratch)
            for result in (path / "results").iterdir():
                if result.stem not in folder.finished:
                    result.unlink()
            resumed = [*run.facts.get("resumed", []), facts["started"]]
            part = path / ".run.json.part"
            part.write_text(to_json({**run.facts, "resumed": resumed}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path / "run.json")
        except OSError as error:
            raise InputError(f"--resume: {path} cannot be written: {error}") from error
        return folder

    def close(self) -> None:
        """Let another process write here."""
        with contextlib.suppress(OSError):
            (self.path / _LOCK).unlink()
        self._lock.release()

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
        mine = [{"cell": cell["id"], "block": i, **sample} for i, sample in enumerate(samples)]
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


def _lock(path: Path) -> FileLock:
    """The system takes it back when the process ends, however it ends."""
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"another process writes to {path}; wait for it, or name another folder") from None
    return lock


def _drop_torn_line(path: Path) -> None:
    """A last line without its end was being written when the run was cut; its cell counts as not run."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        part = path.with_name(".cells.jsonl.part")
        part.write_bytes(data[: data.rfind(b"\n") + 1])
        os.replace(part, path)


_MAY_DIFFER = frozenset({"started", "resumed", "environment.load_average", "format"})


def _differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Every fact that differs, as `name: kept, now ...`; of some it is no matter that they do."""
    a, b = _flat(kept), _flat(now)
    names = [name for name in dict.fromkeys((*a, *b)) if name not in _MAY_DIFFER and a.get(name) != b.get(name)]
    return "; ".join(f"{name}: {a.get(name)!r}, now {b.get(name)!r}" for name in names)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in json.loads(to_json(facts)).items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def read_run(path: Path) -> StoredRun:
    """A run's folder, checked.

    Raises:
        InputError: no folder, no run in it, or a file of it is damaged; says which and where.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; name the folder of a run, as `crosslens run --out` wrote it")
    facts = read_facts(path)
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


def read_facts(folder: Path) -> dict[str, Any]:
    """What run.json says, checked.

    Raises:
        InputError: it is not there, damaged, or of another version.
    """
    path = folder / "run.json"
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
