"""The folder of a comparison: `comparison.json`, and a Parquet file for each window of examples.

    comparison.json      schema, what was compared, versions, whether it is complete, and each part with its digest
    part-00000.parquet   one row an example: number, text, pair, mark, categories, tokens, figures, vector

A part is written beside its place, flushed and renamed, and only then named in `comparison.json`, which is replaced as
a whole: after a kill or on a full disk, what it names is whole. What is damaged later does not have its digest, and
`compare(..., resume=True)` runs these windows again, and no others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crosslens.adapters.errors import InputError

from .category import Category, Kept
from .comparison import Comparison, Facts
from .examples import Corpus, Example, Survey, crossed
from .parts import digest, read_part, replace_file, write_part
from .window import Window, mark, windows

SCHEMA = 2
NAME = "comparison.json"
SUMS, KEPT = "sums.npz", "kept.parquet"


class Folder:
    """A comparison's folder while it is written.

    Args:
        path: of the folder.
        facts: what is compared.
        run: batch size, window and shard, which a resumed run must share.
        corpus, survey: the examples, and what they hold where that is known.
        resume: whether to go on with what is there.

    Raises:
        InputError: the folder is in use, holds something else or another comparison, or cannot be written.
    """

    def __init__(
        self, path: Path, facts: Facts, run: Mapping[str, Any], corpus: Corpus, survey: Survey | None, resume: bool
    ) -> None:
        self.path, self.facts, self.run = path, facts, dict(run)
        self.corpus = None if survey is None else asdict(survey)
        self.parts: dict[int, dict[str, Any]] = {}
        self.used: set[int] = set()
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; name a folder that is new or empty")
        if path.exists() and any(path.iterdir()):
            if not resume:
                raise InputError(f"{path} is not empty: name another folder, or resume what it holds")
            self._go_on(corpus, survey)
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._note(False)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error

    def _go_on(self, corpus: Corpus, survey: Survey | None) -> None:
        state = _read(self.path)
        if "run" not in state:
            raise InputError(f"{self.path} holds a comparison that was saved, and cannot go on; name another folder")
        if difference := self.facts.difference(Facts(**state["facts"])):
            raise InputError(f"{self.path} holds another comparison; this one and that differ in {difference}")
        for name, value in self.run.items():
            if state["run"][name] != value:
                raise InputError(
                    f"{self.path} was made with {name}={state['run'][name]}, not {value}: resume with that"
                )
        self.parts = {part["window"]: part for part in state["parts"]}
        before = state["corpus"]
        self.corpus = self.corpus or before
        if survey is not None and before is not None and survey.mark != before["mark"]:
            for number, group in enumerate(windows(corpus, self.run["window"])):
                self.read(number, group)  # says which example, if it was run before
            then, now = _counted(before["n"], before["counts"]), _counted(survey.n, survey.counts)
            raise self._other(f"{then} then, {now} now")

    def read(self, number: int, examples: Sequence[Example]) -> Window | None:
        """The finished window of these examples; None if it is not there, or damaged.

        Raises:
            InputError: it is of other examples; says which is the first.
        """
        entry = self.parts.get(number)
        if entry is None:
            return None
        self.used.add(number)
        window = read_part(_part(self.path, number), entry["digest"], self.facts.shape)
        if entry["mark"] != mark(examples):
            held = [] if window is None else window.examples
            pairs = zip(held, examples, strict=False)
            first = next((pair for pair in pairs if pair[0].mark != pair[1].mark), None)
            if first is not None:
                raise self._other(f"example {first[1].number + 1} was {_shown(first[0])} and is {_shown(first[1])}")
            raise self._other(f"window {number + 1} had {entry['n']} examples and has {len(examples)}, or others")
        return window

    def write(self, window: Window, kept: set[int]) -> None:
        """Keep a window, with the vectors of the examples that are kept.

        Raises:
            InputError: it cannot be written, as on a full disk; what was written before is whole.
        """
        path = _part(self.path, window.number)
        try:
            data = write_part(path, window, kept)
            entry = {"window": window.number, "n": len(window.examples), "mark": mark(window.examples), "digest": data}
            self._note(False, {**self.parts, window.number: entry})
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error}; {len(self.parts)} finished windows are kept, and resume goes on "
                "behind them"
            ) from error
        self.used.add(window.number)

    def finish(self, n: int) -> None:
        """Say that all examples were seen.

        Raises:
            InputError: parts are left that these examples do not reach, or the folder cannot be written.
        """
        if left := sorted(set(self.parts) - self.used):
            raise self._other(f"it holds window {left[0] + 1}, and there are {n} examples now, which end before it")
        try:
            self._note(True)
        except OSError as error:
            raise InputError(f"{self.path / NAME} cannot be written: {error}; all windows are kept") from error

    def _other(self, why: str) -> InputError:
        return InputError(f"{self.path} was made from other examples: {why}; name another folder")

    def _note(self, complete: bool, parts: dict[int, dict[str, Any]] | None = None) -> None:
        parts = self.parts if parts is None else parts
        state = _state(self.facts, complete) | {
            "corpus": self.corpus, "run": self.run, "parts": [parts[number] for number in sorted(parts)],
        }  # fmt: skip
        replace_file(self.path / NAME, json.dumps(state, indent=1).encode())
        self.parts = parts


def save(comparison: Comparison, path: Path) -> None:
    """Write a comparison that is in memory: its kept examples, and the merged sums of each category."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} is not a folder that is new or empty: name another")
    arrays: dict[str, Any] = {}
    labels: list[list[str]] = []
    kept: list[Kept] = []
    for i, (names, category) in enumerate(comparison._categories.items()):
        labels.append(list(names))
        arrays |= {f"{i}.{name}": array for name, array in category.to_arrays().items()}
        kept += category.kept
    sums = io.BytesIO()
    np.savez_compressed(sums, **arrays)
    shape = comparison.facts.shape
    window = Window(
        0, [each.example for each in kept], [0] * len(kept),
        np.array([each.figures for each in kept]).reshape(len(kept), shape.features),
        np.array([each.vector for each in kept], dtype=np.float32).reshape(len(kept), shape.vector), {},
    )  # fmt: skip
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / SUMS, sums.getvalue())
        digests = {SUMS: digest(sums.getvalue())}
        digests[KEPT] = write_part(path / KEPT, window, {each.example.number for each in kept})
        state = _state(comparison.facts, comparison.complete)
        state |= {"labels": labels, "digests": digests, "problems": comparison.problems}
        replace_file(path / NAME, json.dumps(state, indent=1).encode())
    except OSError as error:
        raise InputError(f"the comparison cannot be written to {path}: {error}") from error


def load(path: Path) -> Comparison:
    """Read what `save` or a `Folder` wrote."""
    state = _read(path)
    result = Comparison(Facts(**state["facts"]))
    if "digests" in state:
        _load_saved(path, state, result)
        return result
    for entry in state["parts"]:
        part = _part(path, entry["window"])
        window = read_part(part, entry["digest"], result.facts.shape)
        if window is None:
            result.problems.append(f"{part.name} is damaged or missing: its {entry['n']} examples are left out")
        else:
            result.add(window)
    result.complete = bool(state["complete"]) and not result.problems
    return result


def _load_saved(path: Path, state: dict[str, Any], result: Comparison) -> None:
    shape, sums = result.facts.shape, path / SUMS
    kept = read_part(path / KEPT, state["digests"][KEPT], shape)
    try:
        data = sums.read_bytes()
        if kept is None or digest(data) != state["digests"][SUMS]:
            raise ValueError("it is not what was written")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for i, labels in enumerate(state["labels"]):
                own = {name.split(".")[1]: arrays[name] for name in arrays if name.startswith(f"{i}.")}
                result._categories[tuple(labels)] = Category.from_arrays(shape, own)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{sums if kept else path / KEPT} cannot be read: {error}") from error
    for example, figures, vector in zip(kept.examples, kept.figures, kept.vectors, strict=True):
        result.at(example.categories).keep(example.key(shape.seed), Kept(example, figures, vector))
    result.complete, result.problems = bool(state["complete"]), list(state["problems"])


def _state(facts: Facts, complete: bool) -> dict[str, Any]:
    versions = {name: version(name) for name in ("crosslens", "torch", "transformers", "numpy")}
    return {"schema": SCHEMA, "complete": complete, "facts": asdict(facts), "versions": versions}


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / NAME).read_text(encoding="utf-8"))
        schema = state["schema"]
    except FileNotFoundError as error:
        raise InputError(f"{path} holds no comparison: there is no {NAME}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / NAME} cannot be read: {error}") from error
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = (
            "install the version of crosslens that wrote it, or a later one" if newer else "run the comparison again"
        )
        raise InputError(f"{path} has schema {schema!r}; this version of crosslens reads {SCHEMA}: {advice}")
    return state


def _part(path: Path, number: int) -> Path:
    return path / f"part-{number:05d}.parquet"


def _counted(n: int, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:6])
    return f"{n} examples ({shown}{', …' if len(counts) > 6 else ''})"


def _shown(example: Example) -> str:
    return f"{example.text[:40]!r} in {crossed(example.categories)!r}"
