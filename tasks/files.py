"""Rows of a csv, jsonl or parquet file, a part at a time; an error says which line or byte is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")
_PART = 1000  # rows that are held at a time


def read_rows(path: Path) -> Iterator[Any]:
    """Each row as a mapping. Cells of a csv file are texts; an empty one is an empty text.

    Raises:
        InputError: no such file, an unknown suffix, an empty file, wrong encoding (says the line and byte), or content
            that is not what the suffix says (says the line).
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: its name must end in {', '.join(SUFFIXES)}, which says how to read it")
    if not path.is_file():
        raise InputError(f"{path} is a folder" if path.is_dir() else f"there is no file {path}")
    try:
        if not path.stat().st_size:
            raise InputError(f"{path} is empty")
        yield from {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}{_where_not_utf8(path)}; save it as UTF-8") from error
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:  # what pandas and pyarrow raise of a file that is not what its name says
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _csv(path: Path) -> Iterator[Any]:
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    with pd.read_csv(path, chunksize=_PART, **options) as parts:
        for part in parts:
            yield from part.to_dict("records")


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, line {number}: {error}; each line must be one JSON object") from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_PART):
            yield from batch.to_pylist()


def _where_not_utf8(path: Path) -> str:
    """In words, the first byte that is not UTF-8."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                wrong = line[error.start]
                return f", line {number}, is not UTF-8: byte {start + error.start + 1} is 0x{wrong:02x}, {error.reason}"
            start += len(line)
    return " is not UTF-8"
