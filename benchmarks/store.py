"""A run's folder: written as cells finish, read back and checked.

    run.json            what the run was asked to do, and on what machine
    cells.jsonl         one finished cell a line, each with a unique `id`
    samples.parquet     raw timing samples, a row for each block of a cell
    results/ID.npz      the cell's result arrays
    results/ID.csv      the same as the task's own table
    tables/             rendered from the above
    studies/            see `studies.py`

A cell's line is written last, and on the disk before the next cell's: a cell that has a line has all its files, which
the line names with their digests and how many rows it has in samples.parquet. Every other file is written beside its
place and then put there. So at any moment, and whatever ends the process, the folder holds whole cells alone, but for
a last line that is torn and files of a cell without a line; `RunFolder.resume` removes both.

**run.json**, format 2: `format`; `started`, `resumed` (times, UTC); `arguments`, which is the plan (`plan.Plan`: suite,
size, backends, tasks, models, sampling, repeats, seed, threads, dtype and the rest); `environment` (`environment.py`:
python, platform, cpu, cores, memory_bytes, governor, load_average, gpus, variables, versions, packages, git, source);
`random_models`, whose weights mean nothing; `cells`, the ids of all that the run is to have; `executor` (local or ray).

**cells.jsonl**, for each cell: `id`, `kind` (reference or backend), `backend` (null: the reference), `task`, `model`,
`repeat`; `started` (UTC), `seconds` (of its whole process), `load` (of the machine when it started); `status`
("done", or for a backend "right"; "wrong", "vacuous", "unsupported", "not-installed", "failed", "crashed", "timeout",
"out-of-memory"), `stage` (the last that it began) and `reason`; `library`, `version`; `figures` (name -> seconds,
`*_s`, or bytes, `*_bytes`); `score`, `known`, `headline`, `timing` (blocks, calls of a sample, warmups) where it came
so far; `traceback` and `log` (the last lines) where it failed; `node` and `tries` on a cluster; `no_hooks`, why native
hooks could not be timed beside it; `samples` (rows) and `files` (suffix -> SHA-256).

**samples.parquet**: `cell`; `block`, from 0; `order`, the names as they were timed, joined by commas; `bare_s`,
`hooks_s`, `step_s`, seconds a call of the bare forward, native hooks and the backend (NaN: not timed).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout

from crosslens.adapters import InputError

from .schema import FORMAT, SAMPLE_TYPES
from .stored import StoredRun, check_whole, read_facts, read_run, sha256, to_json

__all__ = [
    "FORMAT", "SAMPLE_TYPES", "RunFolder", "StoredRun", "cannot_write", "go_on", "read_facts", "read_run", "refuse_out",
    "to_json",
]  # fmt: skip

_LOCK = ".lock"
_SUFFIXES = (".npz", ".csv")
_BEGINNING = frozenset({_LOCK, "results", "samples.parquet", ".samples.parquet.part", "cells.jsonl", ".run.json.part"})
_AT_ALL = frozenset({"started", "resumed", "environment.load_average"})
_GROW = frozenset({"arguments.repeats", "arguments.studies", "cells"})
"""What a run that is taken up may have more of."""
_WITH_SOURCE = ("environment.git", "environment.packages")


def refuse_out(out: Path) -> None:
    """Raise unless a run can be written to `out`; changes nothing.

    Raises:
        InputError: it is a file, not empty, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        if not out.is_dir():
            raise InputError(f"--out {out} is a file; name a folder that is new or empty")
        held = sorted(path.name for path in out.iterdir())
        if "run.json" in held:
            raise InputError(
                f"--out {out} already holds a run; name another folder, or go on with it by --resume. "
                "Nothing was changed"
            )
        if "cells.jsonl" in held and (out / "cells.jsonl").stat().st_size:
            raise InputError(
                f"--out {out} holds the cells of a run without its run.json, as a copy that was cut short does; copy "
                "it again, or name another folder. Nothing was changed"
            )
        # what a process leaves that was killed as it began is no run, and no reason to refuse one
        results = out / "results"
        if set(held) - _BEGINNING or (results.is_dir() and any(results.iterdir())):
            raise InputError(f"--out {out} is not empty ({held[0]}, ...); name a folder that is new or empty")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {out} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no right to write in {nearest}")


def go_on(path: Path) -> str:
    """The command that goes on with the run in a folder."""
    return f"crosslens run --resume --out {shlex.quote(str(path))}"


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to say where the system refuses what a run in this folder needs, and how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    do = "make room on that disk" if full else "see to that"
    return InputError(
        f"cannot go on with the run in {path}: {error}; every finished cell is kept: {do}, and `{go_on(path)}` goes on"
    )


class RunFolder:
    """The folder of a run that is under way; held by one process at a time.

    Args:
        path: new or empty.
        facts: what run.json says.

    Attributes:
        finished: cell id -> status of the cells that it holds.

    Raises:
        InputError: as `refuse_out`, or the system refuses.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        refuse_out(path)
        self.path = path
        self.finished: dict[str, str] = {}
        self._samples = _frame([])
        try:
            (path / "results").mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path)
            with self._or_unlock():
                refuse_out(path)  # again: another process may have begun meanwhile, and ended
                self._write_samples()
                (path / "cells.jsonl").touch()
                self._write_facts({"format": FORMAT, **facts})  # last: what has no run.json is no run
        except OSError as error:
            raise InputError(f"--out {path} cannot be written: {error}") from error

    @classmethod
    def resume(cls, path: Path, facts: Mapping[str, Any]) -> Self:
        """Take up a run that was cut short: what is torn or belongs to no finished cell is removed.

        Args:
            facts: what run.json would say if the run began now.

        Raises:
            InputError: no run is there, another process writes to it, a file of it is damaged or missing, or it was
                made with other settings, versions or on another machine; says what differs. Nothing was changed.
        """
        if not (path / "run.json").exists():
            raise InputError(f"--resume: {path} holds no run; start one without --resume")
        folder = cls.__new__(cls)
        folder.path = path
        try:
            folder._lock = _lock(path)
            with folder._or_unlock():
                run = read_run(path, torn="leave out")
                if differing := _differences(run.facts, facts):
                    raise InputError(f"--resume: {path} was made otherwise, and its cells cannot be mixed: {differing}")
                check_whole(path, run)
                folder._take_up(run, facts)
        except OSError as error:
            raise InputError(f"--resume: {path} cannot be written: {error}") from error
        return folder

    def _take_up(self, run: StoredRun, facts: Mapping[str, Any]) -> None:
        self.finished = {cell["id"]: cell["status"] for cell in run.cells}
        _drop_torn_line(self.path / "cells.jsonl")
        self._samples = run.samples
        self._write_samples()
        for scratch in (p for p in self.path.glob(".*.*") if p.is_dir()):
            shutil.rmtree(scratch, ignore_errors=True)  # a worker that is about to end may still write there
        for result in (self.path / "results").iterdir():
            if result.stem not in self.finished:
                result.unlink()
        asked = {name: facts[name] for name in ("arguments", "cells") if name in facts}  # more of it, it may be
        self._write_facts({**run.facts, **asked, "resumed": [*run.facts.get("resumed", []), facts["started"]]})

    @contextlib.contextmanager
    def _or_unlock(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process write here."""
        try:
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink()
        finally:
            self._lock.release()

    def scratch(self, cell_id: str) -> Path:
        """A new folder for one process's files, on the same file system.

        Raises:
            InputError: the disk is full, or the folder is gone.
        """
        try:
            return Path(tempfile.mkdtemp(prefix=f".{cell_id}.", dir=self.path))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def result(self, cell_id: str) -> Path:
        """Where a cell's result arrays are kept."""
        return self.path / "results" / f"{cell_id}.npz"

    def add(self, cell: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], scratch: Path) -> None:
        """Keep a finished cell: its samples and files first, its line last; then it is on the disk.

        Raises:
            InputError: the disk is full, or the folder is gone; the cell is not kept, all before it are.
        """
        before = self._samples
        try:
            self._add(cell, samples, scratch)
        except OSError as error:
            self._samples = before
            raise cannot_write(self.path, error) from error
        self.finished[cell["id"]] = cell["status"]

    def _add(self, cell: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], scratch: Path) -> None:
        mine = [{"cell": cell["id"], "block": i, **sample} for i, sample in enumerate(samples)]
        if mine:
            self._samples = pd.concat([self._samples, _frame(mine)], ignore_index=True)
            self._write_samples()
        kept = {}
        for suffix in _SUFFIXES:
            made = scratch / f"result{suffix}"
            if made.exists():
                _to_disk(made)
                kept[suffix[1:]] = sha256(made)
                os.replace(made, self.path / "results" / (cell["id"] + suffix))
        if kept:
            _to_disk(self.path / "results")
        line = to_json({**cell, "samples": len(mine), "files": kept})
        _append(self.path / "cells.jsonl", (line + "\n").encode())
        shutil.rmtree(scratch, ignore_errors=True)  # the cell is kept: what is left of this is removed on --resume

    def _write_samples(self) -> None:
        with _put(self.path / "samples.parquet") as part:
            self._samples.to_parquet(part, index=False)

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        with _put(self.path / "run.json") as part:
            part.write_text(to_json(facts, indent=2) + "\n", encoding="utf-8")


def _frame(samples: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(samples, columns=list(SAMPLE_TYPES)).astype(SAMPLE_TYPES)


@contextlib.contextmanager
def _put(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path` in one step, on the disk; or is gone."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def _append(path: Path, data: bytes) -> None:
    """Add a line, on the disk when this returns; or nothing, not half of it."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(file).st_size
        try:
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        except BaseException:
            os.ftruncate(file, before)
            raise
    finally:
        os.close(file)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


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
    with path.open("rb+") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
            os.fsync(file.fileno())


def apart(kept: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every fact of two runs that differs: its name -> both, None where there is none.

    Of the load it is no matter that it does; of the commit and of packages that crosslens does not name it is none
    where the source that runs and the versions that it names are the same.
    """
    a, b = _flat(kept), _flat(now)
    names = [name for name in dict.fromkeys((*a, *b)) if name != "format" and name not in _AT_ALL]
    return {
        name: (a.get(name), b.get(name))
        for name in names
        if a.get(name) != b.get(name) and not name.startswith(_WITH_SOURCE)
    }


def _differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What keeps a run from being taken up, as `name: kept, now ...`."""
    differing = {
        name: both for name, both in apart(kept, now).items() if name not in _GROW or not _within(both[0], both[1])
    }
    return "; ".join(f"{name}: {one!r}, now {other!r}" for name, (one, other) in differing.items())


def _within(kept: Any, now: Any) -> bool:
    """Whether nothing of what is kept is missing now."""
    if isinstance(kept, list) and isinstance(now, list):
        return set(kept) <= set(now)
    return isinstance(kept, int) and isinstance(now, int) and kept <= now


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in json.loads(to_json(facts)).items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
