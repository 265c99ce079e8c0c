"""Examples of a comparison: texts with their categories, from a file, a frame or any iterable, checked one by one.

What can be read twice (all but an iterator) is read once before any work, so that a mistake in the last row costs
nothing; an iterator is checked as it comes.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters.errors import InputError

from .files import read_rows

CROSS = " × "
MOST_TEXT = 2000  # characters of a text that is kept beside its figures
_OURS = (
    "site", "kpi", "n", "mean", "sd", "min", "q05", "q25", "q50", "q75", "q95", "max", "missing", "pooled", "number",
    "text", "pair", "crossed",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        number: its place in the source, from 0.
        text: what the model reads.
        categories: its label in each category column, as text.
        pair: label of the item that it is a version of; empty for none.
        mark: digest of the three, 32 hexadecimal digits.
    """

    number: int
    text: str
    categories: tuple[str, ...]
    pair: str
    mark: str

    @property
    def label(self) -> str:
        """The crossed category."""
        return crossed(self.categories)

    def short(self) -> Example:
        """The same with as much of the text as is kept."""
        return self if len(self.text) <= MOST_TEXT else replace(self, text=self.text[:MOST_TEXT])

    def key(self, seed: int) -> int:
        """A number of 64 bits that depends on the content alone; all versions of an item have the same."""
        return int.from_bytes(hashlib.blake2b(f"{seed} {self.pair or self.mark}".encode(), digest_size=8).digest())


def crossed(labels: Sequence[str]) -> str:
    """One label of several; in quotes those that hold the sign that joins them."""
    return CROSS.join(repr(label) if len(labels) > 1 and CROSS.strip() in label else label for label in labels)


@dataclass(frozen=True)
class Survey:
    """What a corpus holds: the number of examples, those of each crossed category, and a digest of all in order."""

    n: int
    counts: dict[str, int]
    mark: str


class Corpus:
    """A source of examples, and how its columns are called.

    Args:
        source: a csv, jsonl or parquet file, a DataFrame, or an iterable of mappings.
        text: name of the column of texts.
        categories: name, or names, of the columns of categories; several are crossed.
        pair: name of the column of items whose versions are compared; None for `pair` where there is one.

    Raises:
        InputError: names that cannot be used, or a source that is none of these.
    """

    def __init__(
        self, source: Any, *, text: str = "text", categories: str | Sequence[str] = "category", pair: str | None = None
    ) -> None:
        names = [categories] if isinstance(categories, str) else list(categories)
        used = [text, *names, *([pair] if pair else [])]
        if not names or len(set(used)) < len(used):
            raise InputError(
                f"text={text!r}, categories={names}, pair={pair!r}: name at least one column of categories, and no "
                "column twice"
            )
        if taken := [name for name in names if name in _OURS]:
            raise InputError(f"a category column is called {taken[0]!r}, as a column of the result is; rename it")
        known = isinstance(source, str | Path | pd.DataFrame)
        if not known and (isinstance(source, Mapping) or not isinstance(source, Iterable)):
            raise InputError(
                f"examples are {type(source).__name__}; give a file, a DataFrame or an iterable of mappings"
            )
        self.source, self.text, self.columns, self.pair = source, text, names, pair
        self.again = known or not isinstance(source, Iterator)
        """Whether it can be read more than once."""

    def __iter__(self) -> Iterator[Example]:
        """Examples one after another; what streams is never held as a whole.

        Raises:
            InputError: a file that cannot be read, a missing column, or an example without text or category; says
                where.
        """
        where = self.source if isinstance(self.source, str | Path) else "the examples"
        for number, row in enumerate(self._rows()):
            yield self._example(row, number, f"{where}, example {number + 1}")

    def survey(self, check: Callable[[Example], None] | None = None) -> Survey:
        """Read everything once.

        Args:
            check: called with each example.

        Raises:
            InputError: as `__iter__`, or there is no example.
        """
        n, counts, digest = 0, Counter[str](), hashlib.blake2b(digest_size=16)
        for example in self:
            if check:
                check(example)
            n += 1
            counts[example.label] += 1
            digest.update(example.mark.encode())
        if not n:
            raise no_examples(self.source)
        return Survey(n, dict(counts), digest.hexdigest())

    def _rows(self) -> Iterator[Any]:
        if isinstance(self.source, pd.DataFrame):
            for at in range(0, len(self.source), 1000):
                yield from self.source.iloc[at : at + 1000].to_dict("records")
        elif isinstance(self.source, str | Path):
            yield from read_rows(Path(self.source))
        else:
            yield from self.source

    def _example(self, row: Any, number: int, at: str) -> Example:
        if not isinstance(row, Mapping):
            raise InputError(
                f"{at}: it is {type(row).__name__}; an example is a mapping with {self.text!r} and {self.columns[0]!r}"
            )
        for name in (self.text, *self.columns, *([self.pair] if self.pair else [])):
            if name not in row:
                near = difflib.get_close_matches(name, map(str, row), n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}? It" if near else "it"
                raise InputError(f"{at}: there is no column {name!r}; {hint} has {', '.join(map(str, row))}")
        text = row[self.text]
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{at}: {self.text!r} is {_shown(text)}; it must be a text that is not empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, as JSON can hold
            raise InputError(f"{at}: {self.text!r} is no valid text: {error}") from error
        labels = tuple(self._label(row[name], f"{at}: {name!r}") for name in self.columns)
        item = row.get(self.pair or "pair")
        pair = "" if _missing(item) or not str(item).strip() else str(item)
        mark = hashlib.blake2b(repr((text, labels, pair)).encode(), digest_size=16).hexdigest()
        return Example(number, text, labels, pair, mark)

    @staticmethod
    def _label(value: Any, at: str) -> str:
        if _missing(value) or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{at} is {_shown(value)}; every example needs a category")
        if isinstance(value, Mapping | list | tuple | set):
            raise InputError(f"{at} is {_shown(value)}; a category is a text or a number")
        return str(value)


def no_examples(source: Any) -> InputError:
    """The error of a source without a row."""
    return InputError(f"there are no examples{f' in {source}' if isinstance(source, str | Path) else ''}")


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
