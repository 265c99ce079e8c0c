"""The folder of a comparison: `comparison.json`, and a Parquet file for each window of examples.

    comparison.json      schema, what was compared, versions, whether it is complete, and the parts with their marks
    part-00000.parquet   one row an example: number, text, pair, categories, tokens, figures, elements

A part is written beside its place, flushed and renamed, and only then named in `comparison.json`: after a kill or on a
full disk a folder holds whole parts alone, and `compare(..., resume=True)` goes on behind them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crosslens.adapters.errors import InputError

from .comparison import MOST_TEXT, Comparison, Facts
from .examples import Example
from .kernels import FIELDS, Array

SCHEMA = 1
NAME = "comparison.json"


class Folder:
    """A comparison's folder while it is written.

    Args:
        path: of the folder.
        facts: what is compared.
        resume: whether to go on with what is there.

    Attributes:
        done: marks of the windows that are finished.
        result: what they hold.

    Raises:
        InputError: the folder is in use, holds something else, or cannot be written.
    """

    def __init__(self, path: Path, facts: Facts, resume: bool) -> None:
        self.path = path
        self.facts = facts
        there = path.exists() and any(path.iterdir())
        if there and not resume:
            raise InputError(f"{path} is not empty: name another folder, or resume what it holds")
        if there:
            state = _read(path)
            if difference := facts.difference(Facts(**state["facts"])):
                raise InputError(f"{path} holds another comparison; they differ in {difference}")
            self.done: list[str] = state["parts"]
            self.result = load(path)
            return
        self.done, self.result = [], Comparison(facts)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be made: {error}") from error
        self._note(False)

    def check(self, number: int, mark: str) -> None:
        """Raise InputError if a window is not the one that was read before."""
        if self.done[number] != mark:
            raise InputError(
                f"{self.path} was made from other examples: they differ within window {number + 1}; name another folder"
            )

    def write(
        self, number: int, mark: str, window: Sequence[Example], values: Array, elements: Array, lengths: Sequence[int]
    ) -> None:
        """Keep a window.

        Raises:
            InputError: it cannot be written, as on a full disk; what was written before is whole.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        table = pa.table(
            {
                "number": [example.number for example in window],
                "text": [example.text[:MOST_TEXT] for example in window],
                "pair": [example.pair for example in window],
                "categories": [list(example.categories) for example in window],
                "tokens": list(lengths),
                "figures": pa.array(list(values), pa.list_(pa.float64())),
                "elements": pa.array(list(elements.reshape(len(window), -1)), pa.list_(pa.float64())),
            }
        )
        path = _part(self.path, number)
        part = path.with_suffix(".part")
        try:
            parquet.write_table(table, part, compression="zstd")
            _flush(part)
            os.replace(part, path)
            self.done.append(mark)
            self._note(False)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{path} cannot be written: {error}; {len(self.done)} windows are kept, and resume goes on behind them"
            ) from error

    def finish(self) -> None:
        """Say that all examples were seen."""
        self._note(True)

    def _note(self, complete: bool) -> None:
        state = {
            "schema": SCHEMA,
            "complete": complete,
            "facts": asdict(self.facts),
            "versions": {name: version(name) for name in ("crosslens", "torch", "transformers")},
            "parts": self.done,
        }
        part = self.path / f".{NAME}.part"
        part.write_text(json.dumps(state, indent=1), encoding="utf-8")
        _flush(part)
        os.replace(part, self.path / NAME)


def save(comparison: Comparison, path: Path) -> None:
    """Write a comparison that is in memory: its kept examples, and the merged sums of each category."""
    if path.exists() and any(path.iterdir()):
        raise InputError(f"{path} is not empty: name another folder")
    arrays: dict[str, Any] = {}
    labels = []
    for i, (names, category) in enumerate(comparison._categories.items()):
        labels.append(list(names))
        arrays[f"{i}.n"] = np.array(category.n)
        for name in ("moments", "elements", "missing"):
            arrays[f"{i}.{name}"] = getattr(category, name)
        for j, data in enumerate(category.sketches.to_bytes()):
            arrays[f"{i}.sketch.{j}"] = np.frombuffer(data, dtype=np.uint8)
        arrays[f"{i}.kept"] = np.array([values for _, _, _, values in category.kept]).reshape(len(category.kept), -1)
    kept = [
        [[-key, e.number, e.text[:MOST_TEXT], e.pair] for key, _, e, _ in category.kept]
        for category in comparison._categories.values()
    ]
    state = {
        "schema": SCHEMA, "complete": comparison.complete, "facts": asdict(comparison.facts), "labels": labels,
        "kept": kept, "parts": [],
    }  # fmt: skip
    try:
        path.mkdir(parents=True, exist_ok=True)
        part = path / "sums.npz.part"
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(part, path / "sums.npz")
        (path / NAME).write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the comparison cannot be written to {path}: {error}") from error


def load(path: Path) -> Comparison:
    """Read what `save` or a `Folder` wrote."""
    state = _read(path)
    result = Comparison(Facts(**state["facts"]))
    result.complete = bool(state["complete"])
    if (path / "sums.npz").exists():
        _load_sums(path, state, result)
        return result
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for number in range(len(state["parts"])):
        try:
            rows = parquet.read_table(_part(path, number)).to_pydict()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{_part(path, number)} cannot be read: {error}") from error
        examples = [
            Example(*row)
            for row in zip(rows["number"], rows["text"], map(tuple, rows["categories"]), rows["pair"], strict=True)
        ]
        elements = np.array(rows["elements"]).reshape(len(examples), len(result.facts.sites), len(FIELDS))
        result.add(examples, np.array(rows["figures"], dtype=np.float64), elements, rows["tokens"])
    return result


def _load_sums(path: Path, state: dict[str, Any], result: Comparison) -> None:
    from .accumulators import Quantiles
    from .comparison import _Category

    with np.load(path / "sums.npz", allow_pickle=False) as arrays:
        for i, (labels, kept) in enumerate(zip(state["labels"], state["kept"], strict=True)):
            category = result._categories.setdefault(tuple(labels), _Category(result.facts))
            category.n = int(arrays[f"{i}.n"])
            for name in ("moments", "elements", "missing"):
                setattr(category, name, arrays[f"{i}.{name}"])
            sketches = [arrays[f"{i}.sketch.{j}"].tobytes() for j in range(len(result.facts.features))]
            category.sketches = Quantiles.from_bytes(sketches)
            for (key, number, text, pair), values in zip(kept, arrays[f"{i}.kept"], strict=True):
                category.keep(key, Example(number, text, tuple(labels), pair), values, result.facts.keep)


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / NAME).read_text(encoding="utf-8"))
        schema = state["schema"]
    except FileNotFoundError as error:
        raise InputError(f"{path} holds no comparison: there is no {NAME}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / NAME} cannot be read: {error}") from error
    if schema != SCHEMA:
        raise InputError(f"{path} has schema {schema}; this version of crosslens reads {SCHEMA}: install a newer one")
    return state


def _part(path: Path, number: int) -> Path:
    return path / f"part-{number:05d}.parquet"


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
