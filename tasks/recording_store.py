"""The folder of a recording: `recording.json`, and a Parquet file for each stretch of steps.

    recording.json       schema, versions, what is recorded, whether it is complete, problems, each part with its digest
    part-00000.parquet   one row a tensor and step (and sample), one column a KPI; losses and scalars in `value`

Columns of a part: step (int64); category, kind, site, role, group (text; category null where there was none);
iteration, call (int32); sample (int32, null for what is of the whole tensor); each KPI (double, null for losses and
scalars); value (double). Its metadata holds `crosslens.steps`, JSON of each step: number, category, notes.

A part is written beside its place, flushed and renamed, and only then named in `recording.json`, which is replaced as a
whole: after a kill or on a full disk, what it names is whole, and at most the steps since the last part are missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crosslens.adapters.errors import InputError

from .kernels import Array
from .parts import digest, replace_file
from .recording_figures import values

if TYPE_CHECKING:
    import pyarrow as pa

    from .recording_watch import Key

SCHEMA = 1
NAME = "recording.json"
KEYS = ("step", "category", "kind", "site", "iteration", "call", "role", "group", "sample")
_STEPS = b"crosslens.steps"
_TEXTS = ("category", "kind", "site", "role", "group")


@dataclass(eq=False)
class Record:
    """One step, as it was taken.

    Attributes:
        keys, groups: of each row. fields, over_batch, exact: see `Figures.taken`.
        owners, samples: see `Figures`. labels: category of each sample.
        numbers: (kind, name, iteration, role, value) of losses and scalars.
    """

    step: int
    category: str | None
    keys: list[Key] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    fields: Array | None = None
    over_batch: Array | None = None
    exact: Any = None
    owners: list[tuple[int, int]] = field(default_factory=list)
    samples: Array | None = None
    labels: list[str] | None = None
    numbers: list[tuple[str, str, int, str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of memory, about."""
        arrays = (self.fields, self.over_batch, self.samples)
        return 500 + 100 * len(self.numbers) + sum(each.nbytes for each in arrays if each is not None)


def as_table(records: Sequence[Record], kpis: Sequence[str]) -> pa.Table:
    """Records as one part has them, series by series so that like lies beside like."""
    import pyarrow as pa

    found: list[tuple[Any, ...]] = []  # KEYS
    blocks: list[Array] = []
    numbers: list[float] = []
    for record in records:
        if record.fields is not None and len(record.keys):
            blocks.append(values(record.fields, record.over_batch, record.exact, kpis))
            head = (record.step, record.category)
            found += [(*head, *key, group, -1) for key, group in zip(record.keys, record.groups, strict=True)]
            for row, first, count in _samples(record):
                assert record.samples is not None
                one = np.repeat(record.exact[row], count)
                blocks.append(values(record.samples[first : first + count], None, one, kpis))
                labels = record.labels
                own = labels if labels is not None and len(labels) == count else [record.category] * count
                key, group = record.keys[row], record.groups[row]
                found += [(record.step, label, *key, group, number) for number, label in enumerate(own)]
    figures = np.concatenate(blocks) if blocks else np.empty((0, len(kpis)))
    for record in records:
        for kind, name, iteration, role, value in record.numbers:
            found.append((record.step, record.category, kind, name, iteration, 0, role, "", -1))
            numbers.append(float(value))
    series: dict[tuple[Any, ...], int] = {}
    code = np.array([series.setdefault(row[2:], len(series)) for row in found], dtype=np.int64)
    order = np.argsort(code, kind="stable")
    n, m = len(figures), len(numbers)
    columns: dict[str, Any] = {}
    for i, name in enumerate(KEYS):
        cells = [found[j][i] for j in order.tolist()]
        if name in _TEXTS:
            columns[name] = pa.array(cells, pa.string()).dictionary_encode()
        elif name == "sample":
            array = np.array(cells, dtype=np.int32)
            columns[name] = pa.array(array, pa.int32(), mask=array < 0)
        else:
            columns[name] = pa.array(cells, pa.int64() if name == "step" else pa.int32())
    none = np.concatenate([np.zeros(n, dtype=np.bool_), np.ones(m, dtype=np.bool_)])[order]
    for i, name in enumerate(kpis):
        column = np.concatenate([figures[:, i], np.zeros(m)])[order]
        columns[name] = pa.array(column, pa.float64(), mask=none)
    columns["value"] = pa.array(np.concatenate([np.zeros(n), numbers])[order], pa.float64(), mask=~none)
    steps = [{"step": r.step, "category": r.category, "notes": r.notes} for r in records]
    return pa.table(columns).replace_schema_metadata({_STEPS: json.dumps(steps).encode()})


def _samples(record: Record) -> Iterator[tuple[int, int, int]]:
    """(row of the tensor, first row of its samples, their number); rows that are void have no place any more."""
    first = 0
    for row, count in record.owners:
        if row >= 0:
            yield row, first, count
        first += count


class Writer:
    """The folder of a recording while it is written.

    Raises:
        InputError: it holds something, or cannot be made.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.parts: list[dict[str, Any]] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = next(path.iterdir(), None)
            if held is None:
                self.note(False, [])
        except OSError as error:
            raise InputError(f"out={str(path)!r} cannot be made or written as a folder: {error}") from error
        if held is not None:
            raise InputError(
                f"out={str(path)!r} holds {held.name!r}; a recording needs a new or empty folder of its own"
            )
        self.last = time.monotonic()

    def write(self, records: Sequence[Record], problems: Sequence[str]) -> None:
        """Add a part.

        Raises:
            OSError: it cannot be written; what was written before is whole.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self.last = time.monotonic()
        table = as_table(records, self.facts["kpis"])
        file = pa.BufferOutputStream()
        figures = [*self.facts["kpis"], "value"]
        parquet.write_table(
            table, file, compression="zstd", compression_level=3, write_statistics=False,
            use_dictionary=list(_TEXTS), column_encoding={
                **dict.fromkeys(figures, "BYTE_STREAM_SPLIT"),
                **dict.fromkeys(("step", "iteration", "call", "sample"), "DELTA_BINARY_PACKED"),
            },
        )  # fmt: skip
        data = file.getvalue().to_pybytes()
        name = f"part-{len(self.parts):05d}.parquet"
        replace_file(self.path / name, data)
        part = {"file": name, "rows": table.num_rows, "steps": len(records), "digest": digest(data)}
        self.note(False, problems, [*self.parts, part])

    def note(self, complete: bool, problems: Sequence[str], parts: list[dict[str, Any]] | None = None) -> None:
        """Replace `recording.json`.

        Raises:
            OSError: it cannot be written; the old one is there.
        """
        parts = self.parts if parts is None else parts
        state = {"schema": SCHEMA, "complete": complete, **self.facts, "problems": list(problems), "parts": parts}
        replace_file(self.path / NAME, json.dumps(state, indent=1).encode())
        self.parts = parts


def versions() -> dict[str, str]:
    """Of what made a recording."""
    return {name: version(name) for name in ("crosslens", "torch", "numpy", "pyarrow")}


def read_state(path: Path) -> dict[str, Any]:
    """What `recording.json` holds.

    Raises:
        InputError: there is none, or it is not one that this version reads.
    """
    try:
        state: dict[str, Any] = json.loads((path / NAME).read_text(encoding="utf-8"))
        schema = state["schema"]
    except FileNotFoundError as error:
        raise InputError(f"{path} holds no recording: there is no {NAME}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / NAME} cannot be read: {error!r}") from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "install the version of crosslens that wrote it, or a later one" if newer else "it is no recording"
        raise InputError(f"{path} has schema {schema!r}; this version of crosslens reads {SCHEMA}: {advice}")
    if lacking := [name for name in ("complete", "kpis", "problems", "parts") if name not in state]:
        raise InputError(f"{path / NAME} lacks {lacking[0]!r}: it is no recording, or was changed")
    return state


def read_parts(path: Path, state: dict[str, Any], problems: list[str]) -> Iterator[pa.Table]:
    """The parts that are whole; of others, a problem."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for part in state["parts"]:
        file = path / part["file"]
        try:
            data = file.read_bytes()
        except OSError:
            data = b""
        if digest(data) == part["digest"]:
            yield parquet.read_table(pa.BufferReader(data))
        else:
            problems.append(f"{part['file']} is damaged or missing: its {part['steps']} steps are left out")


def steps_of(table: pa.Table) -> list[dict[str, Any]]:
    """Number, category and notes of each step of a part."""
    found: list[dict[str, Any]] = json.loads(table.schema.metadata[_STEPS])
    return found
