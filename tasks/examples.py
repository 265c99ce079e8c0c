"""Examples of a comparison: texts with their categories, from a file, a frame or any iterable, checked one by one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters.errors import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        number: its place in the source, from 0.
        text: what the model reads.
        categories: its label in each category column, as text.
        pair: label of the item that it is a version of; empty for none.
    """

    number: int
    text: str
    categories: tuple[str, ...]
    pair: str = ""

    @property
    def label(self) -> str:
        """The crossed category."""
        return " × ".join(self.categories)


def read_examples(
    source: Any, *, text: str = "text", categories: Sequence[str] = ("category",), pair: str | None = None
) -> Iterator[Example]:
    """Examples one after another; a source that streams is never held as a whole.

    Args:
        source: a csv, jsonl or parquet file, a DataFrame, or an iterable of mappings.
        text: name of the column of texts.
        categories: names of the columns of categories; several are crossed.
        pair: name of the column of items whose versions are compared; None for `pair` where there is one.

    Raises:
        InputError: a file that cannot be read, a missing column, or an example without text or category; says where.
    """
    if not categories or text in categories:
        raise InputError(f"categories={list(categories)}: name at least one column, and not that of the texts")
    where = source if isinstance(source, str | Path) else "the examples"
    rows = _rows(source)
    for number, row in enumerate(rows):
        yield _example(row, number, where, text, categories, pair)


def _example(row: Any, number: int, where: Any, text: str, categories: Sequence[str], pair: str | None) -> Example:
    at = f"{where}, example {number + 1}"
    if not isinstance(row, Mapping):
        raise InputError(
            f"{at}: it is {type(row).__name__}; an example is a mapping with {text!r} and {categories[0]!r}"
        )
    for name in (text, *categories, *([pair] if pair else [])):
        if name not in row:
            near = difflib.get_close_matches(name, map(str, row), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{at}: there is no column {name!r}{hint} It has {', '.join(map(str, row))}")
    content = row[text]
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{at}: {text!r} is {_shown(content)}; it must be a text that is not empty")
    labels = [row[name] for name in categories]
    for name, label in zip(categories, labels, strict=True):
        if _missing(label) or (isinstance(label, str) and not label.strip()):
            raise InputError(f"{at}: {name!r} is {_shown(label)}; every example needs a category")
    item = row.get(pair or "pair")
    return Example(number, content, tuple(map(str, labels)), "" if _missing(item) else str(item))


def _rows(source: Any) -> Iterable[Any]:
    if isinstance(source, pd.DataFrame):
        return (dict(row) for row in source.to_dict("records"))
    if isinstance(source, str | Path):
        return _file(Path(source))
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise InputError(f"examples are {type(source).__name__}; give a file, a DataFrame or an iterable of mappings")
    return source


def _file(path: Path) -> Iterator[Any]:
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: its name must end in {', '.join(SUFFIXES)}, which says how to read it")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    try:
        if path.suffix == ".jsonl":
            yield from _lines(path)
        elif path.suffix == ".csv":
            for part in pd.read_csv(path, chunksize=1000, dtype=str, keep_default_na=False, encoding="utf-8"):
                yield from part.to_dict("records")
        else:
            import pyarrow.parquet as parquet

            for batch in parquet.ParquetFile(path).iter_batches(1000):
                yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}; save it as UTF-8") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:  # what pandas and pyarrow raise of a file that is not what its name says
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: {error}; each line must be one JSON object") from error


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
