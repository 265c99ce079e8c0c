"""Parts of a comparison's folder: one window of examples in a Parquet file, whole or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from crosslens.adapters.errors import InputError

from .category import Shape, Sums, stacked, unit_moments
from .examples import Example
from .kernels import FIELDS
from .window import Window

_LABELS, _SUMS = b"crosslens.labels", b"crosslens.sums"


def write_part(path: Path, window: Window, kept: set[int]) -> str:
    """Write a window; returns the digest of the file.

    Args:
        kept: numbers of the examples whose vectors are written. No other's can be asked for again.

    Raises:
        OSError: it cannot be written; what was at `path` before is still there.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    n = len(window.examples)
    vectors = [v if e.number in kept else None for e, v in zip(window.examples, window.vectors, strict=True)]
    columns: dict[str, Any] = {
        "number": pa.array([e.number for e in window.examples], pa.int64()),
        "text": pa.array([e.short().text for e in window.examples], pa.string()),
        "pair": pa.array([e.pair for e in window.examples], pa.string()),
        "mark": pa.array([e.mark for e in window.examples], pa.string()),
        "categories": pa.array([list(e.categories) for e in window.examples], pa.list_(pa.string())),
        "tokens": pa.array(window.tokens, pa.int64()),
        "figures": pa.array(list(window.figures), pa.list_(pa.float64())),
        "vector": pa.array(vectors if window.vectors.shape[1] else [None] * n, pa.list_(pa.float32())),
    }
    arrays: dict[str, Any] = {}
    for i, sums in enumerate(window.sums.values()):
        arrays |= {f"{i}.elements": sums.elements, f"{i}.units": stacked(sums.units)}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    labels = json.dumps([list(each) for each in window.sums]).encode()
    table = pa.table(columns).replace_schema_metadata({_LABELS: labels, _SUMS: packed.getvalue()})
    file = pa.BufferOutputStream()
    parquet.write_table(table, file, compression="zstd")
    data = file.getvalue().to_pybytes()
    replace_file(path, data)
    return digest(data)


def read_part(path: Path, expected: str, shape: Shape) -> Window | None:
    """The window that `write_part` wrote; None if the file is missing or is not what was written."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if digest(data) != expected:
        return None
    table = parquet.read_table(pa.BufferReader(data))
    rows = {name: table.column(name).to_pylist() for name in ("number", "text", "categories", "pair", "mark", "tokens")}
    examples = [
        Example(number, text, tuple(categories), pair, mark)
        for number, text, categories, pair, mark in zip(*list(rows.values())[:5], strict=True)
    ]
    figures = table.column("figures").combine_chunks().flatten().to_numpy().reshape(len(examples), shape.features)
    vectors = np.full((len(examples), shape.vector), np.nan, dtype=np.float32)
    if shape.vector:
        has = np.flatnonzero(table.column("vector").is_valid().to_numpy())
        vectors[has] = table.column("vector").combine_chunks().flatten().to_numpy().reshape(len(has), shape.vector)
    metadata = table.schema.metadata
    with np.load(io.BytesIO(metadata[_SUMS]), allow_pickle=False) as arrays:
        sums = {
            tuple(labels): Sums(
                arrays[f"{i}.elements"].reshape(shape.sites, len(FIELDS)), unit_moments(arrays[f"{i}.units"])
            )
            for i, labels in enumerate(json.loads(metadata[_LABELS]))
        }
    return Window(0, examples, rows["tokens"], np.array(figures, dtype=np.float64), vectors, sums)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, there is the old one or the new.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must be on the disk before anything names the file
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def digest(data: bytes) -> str:
    """Of a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
