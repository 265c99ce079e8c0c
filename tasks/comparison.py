"""The result of a comparison: what it keeps, its tables, and how two of them merge."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from crosslens.adapters.errors import InputError

from . import statistics
from .accumulators import Quantiles, joined
from .engine import KPIS, derive
from .examples import Example
from .kernels import FIELDS, Array, empty

RANKS = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
_SHOWN = ("n", "mean", "sd", "min", *RANKS, "max", "missing")
MOST_TEXT = 2000  # characters of a kept example


@dataclass(frozen=True)
class Facts:
    """What a comparison is of; two that differ in any of it cannot be merged.

    Args:
        sites, kpis: whose figures were taken, in order.
        columns: names of the category columns.
        backend, library, model, dtype: what ran.
        seed, keep: which examples are kept, and how many of each category.
    """

    sites: list[str]
    kpis: list[str]
    columns: list[str]
    backend: str
    library: str
    model: str
    dtype: str
    seed: int
    keep: int

    @property
    def crossed(self) -> str:
        """Name of the column that tells categories apart: the only one, or `crossed`, all of them joined."""
        return self.columns[0] if len(self.columns) == 1 else "crossed"

    @property
    def features(self) -> list[tuple[str, str]]:
        """(site, KPI) in the order of the figures of an example."""
        return [(site, kpi) for site in self.sites for kpi in self.kpis]

    def difference(self, other: Facts) -> str:
        """What differs, in words; empty where nothing does."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{k}: {mine[k]} and {theirs[k]}" for k in mine if mine[k] != theirs[k])


class _Category:
    """What is kept of one category.

    Attributes:
        moments: (feature, fields) of the examples' figures.
        elements: (site, fields) of all elements of all examples.
        sketches: of the examples' figures, by feature.
        missing: (feature,) examples without a figure.
        kept: heap of (-hash, number, example, figures), the smallest hashes.
    """

    def __init__(self, facts: Facts) -> None:
        self.n = 0
        self.moments: Array = empty(len(facts.features))
        self.elements: Array = empty(len(facts.sites))
        self.sketches = Quantiles(len(facts.features))
        self.missing: Array = np.zeros(len(facts.features))
        self.kept: list[tuple[int, int, Example, Array]] = []

    def add(self, examples: Sequence[Example], values: Array, elements: Array, facts: Facts) -> None:
        self.n += len(examples)
        self.missing += (~np.isfinite(values)).sum(axis=0)
        for row, part in zip(values, elements, strict=True):
            self.moments = joined(self.moments, _of_one(row))
            self.elements = joined(self.elements, part)
        self.sketches.update(values)
        for example, row in zip(examples, values, strict=True):
            self.keep(_hash(example, facts.seed), example, row, facts.keep)

    def keep(self, key: int, example: Example, values: Array, most: int) -> None:
        entry = (-key, -example.number, example, values)
        if len(self.kept) < most:
            heapq.heappush(self.kept, entry)
        elif entry[:2] > self.kept[0][:2]:
            heapq.heapreplace(self.kept, entry)


class Comparison:
    """Figures of sites by category, over the examples of a corpus.

    Attributes:
        facts: what was compared.
        complete: whether all examples were seen.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.complete = False
        self._categories: dict[tuple[str, ...], _Category] = {}

    def add(self, examples: Sequence[Example], values: Array, elements: Array, lengths: Sequence[int]) -> None:
        """Take in examples with their figures (example, feature), sums (example, site, fields) and lengths."""
        by_category: dict[tuple[str, ...], list[int]] = {}
        for i, example in enumerate(examples):
            by_category.setdefault(example.categories, []).append(i)
        for labels, rows in by_category.items():
            kept = self._categories.setdefault(labels, _Category(self.facts))
            kept.add([examples[i] for i in rows], values[rows], elements[rows], self.facts)

    def merge(self, other: Self) -> Self:
        """Both together, as a new comparison: the same as one pass over both corpora, to rounding.

        Raises:
            InputError: they are not of the same model, sites, KPIs or categories.
        """
        if difference := self.facts.difference(other.facts):
            raise InputError(f"these comparisons cannot be merged; they differ in {difference}")
        out = type(self)(self.facts)
        for part in (self, other):
            for labels, category in part._categories.items():
                into = out._categories.setdefault(labels, _Category(self.facts))
                into.n += category.n
                into.moments = joined(into.moments, category.moments)
                into.elements = joined(into.elements, category.elements)
                into.missing = into.missing + category.missing
                into.sketches = into.sketches.merge(category.sketches)
                for key, _, example, values in category.kept:
                    into.keep(-key, example, values, self.facts.keep)
        out.complete = self.complete and other.complete
        return out

    # ---- what a reader sees

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(category.n for category in self._categories.values())

    @property
    def categories(self) -> list[str]:
        """Crossed labels, in order of first appearance."""
        return [" × ".join(labels) for labels in self._categories]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each site, KPI and category: n, mean, sd (n - 1), min, quantiles, max over examples; missing,
        examples without a figure; pooled, the figure over all elements of all examples.

        Quantiles are exact while all examples are kept, then those of a sketch (`accumulators.SKETCH_K`).
        """
        frames = []
        for labels, category in self._categories.items():
            frame = pd.DataFrame(self.facts.features, columns=["site", "kpi"])
            for name, label in zip(self.facts.columns, labels, strict=True):
                frame[name] = label
            frame[self.facts.crossed] = " × ".join(labels)
            f = dict(zip(FIELDS, category.moments.T, strict=True))
            count = f["count"]
            seen = count > 0
            frame["n"] = count.astype(int)
            frame["mean"] = np.where(seen, f["mean"], np.nan)
            frame["sd"] = np.sqrt(np.divide(f["m2"], count - 1, out=np.full_like(count, np.nan), where=count > 1))
            frame["min"] = np.where(seen, f["low"], np.nan)
            for name, column in zip(RANKS, self._quantiles(category).T, strict=True):
                frame[name] = column
            frame["max"] = np.where(seen, f["high"], np.nan)
            frame["missing"] = category.missing.astype(int)
            frame["pooled"] = self._pooled(category)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _quantiles(self, category: _Category) -> Array:
        if len(category.kept) < category.n:
            return category.sketches.quantiles(list(RANKS.values()))
        values = np.stack([entry[3] for entry in category.kept])
        values = np.where(np.isfinite(values), values, np.nan)
        usable = ~np.isnan(values).all(axis=0)
        found = np.full((values.shape[1], len(RANKS)), np.nan)
        if usable.any():
            found[usable] = np.nanquantile(values[:, usable], list(RANKS.values()), axis=0).T
        return found

    def _pooled(self, category: _Category) -> Array:
        columns = [KPIS.index(name) for name in self.facts.kpis]
        rows = [
            derive(category.elements[i : i + 1], site.endswith("attn.pattern"))[0, columns]
            for i, site in enumerate(self.facts.sites)
        ]
        return np.concatenate(rows)

    @property
    def examples(self) -> pd.DataFrame:
        """The kept examples: number, text, pair, the category columns, and `crossed` where there are several."""
        rows = []
        for example, _ in self._kept():
            labels = dict(zip(self.facts.columns, example.categories, strict=True))
            common: dict[str, Any] = {"number": example.number, "text": example.text, "pair": example.pair}
            rows.append({**common, **labels, self.facts.crossed: example.label})
        columns = dict.fromkeys(["number", "text", "pair", *self.facts.columns, self.facts.crossed])
        return pd.DataFrame(rows, columns=list(columns))

    @property
    def values(self) -> Array:
        """(kept example, feature) figures, in the order of `examples`."""
        kept = [values for _, values in self._kept()]
        return np.stack(kept) if kept else np.empty((0, len(self.facts.features)))

    def _kept(self) -> list[tuple[Example, Array]]:
        entries = [entry for category in self._categories.values() for entry in category.kept]
        return [(e, v) for _, _, e, v in sorted(entries, key=lambda entry: entry[2].number)]

    def contrasts(self, column: str | None = None, **options: Any) -> pd.DataFrame:
        """Contrasts between categories at every site and KPI; columns as of `statistics.contrasts`, with site and kpi.

        Args:
            column: one of the category columns, for its main effect within strata of the others; None for the crossed
                category.
            options: of `statistics.contrasts`: between, permutations, seed, level.

        They are computed from the kept examples; where fewer are kept than were seen, `.attrs["examples"]` says how
        many.
        """
        examples, values = self.examples, self.values
        name = column or self.facts.crossed
        if name not in (*self.facts.columns, self.facts.crossed):
            raise InputError(f"there is no category column {name!r}; there are {', '.join(self.facts.columns)}")
        others = [c for c in self.facts.columns if c != name]
        strata = None if column is None or not others else examples[others].agg(" × ".join, axis=1).tolist()
        pairs = [pair or None for pair in examples["pair"]]
        found = statistics.contrasts(
            values, examples[name].tolist(), names=self.facts.features, strata=strata,
            pairs=pairs if any(pairs) else None, **options,
        )  # fmt: skip
        found.insert(0, "site", [feature[0] for feature in found["feature"]])
        found.insert(1, "kpi", [feature[1] for feature in found["feature"]])
        found.attrs["examples"] = f"{len(examples)} of {self.n}"
        return found

    def ranking(self, **options: Any) -> pd.DataFrame:
        """Where the categories differ most, strongest first; options as of `contrasts`."""
        return statistics.ranking(self.contrasts(**options))

    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write one self-contained page: heat map, distributions, ranking, examples; options as of `contrasts`.

        Raises:
            InputError: the file cannot be written.
        """
        from .page import page

        found = self.contrasts(**options)
        named = {self.facts.crossed: "category"}
        examples = self.examples[["text", self.facts.crossed]].rename(columns=named)
        table = self.table[["site", "kpi", self.facts.crossed, *_SHOWN]].rename(columns=named)
        facts = {**asdict(self.facts), "examples": self.n, "complete": self.complete}
        title = f"What differs inside {self.facts.model or 'the model'} between {' and '.join(self.facts.columns)}"
        text = page(title, table, found, statistics.ranking(found), examples=examples, facts=facts)
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"the page cannot be written to {path}: {error}") from error
        return Path(path)

    def save(self, folder: str | Path) -> None:
        """Write everything to a new or empty folder; `load` reads it.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        from .comparison_store import save

        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """What `save`, or `compare` with `out`, wrote; an unfinished one has `complete` False.

        Raises:
            InputError: there is none, it is damaged, or of a newer version.
        """
        from .comparison_store import load

        return load(Path(folder))


def _of_one(values: Array) -> Array:
    """(feature, fields) of one figure each."""
    out = empty(len(values))
    seen = np.isfinite(values)
    v = np.where(seen, values, 0.0)
    out[:, 0], out[:, 1] = seen, v
    out[:, 5], out[:, 6] = np.abs(v), v * v
    out[seen, 7] = out[seen, 8] = v[seen]
    return out


def _hash(example: Example, seed: int) -> int:
    """The same for all versions of an item, so that kept pairs are whole."""
    what = example.pair or (example.text, example.categories)
    return int.from_bytes(hashlib.blake2b(repr((seed, what)).encode(), digest_size=8).digest(), "big")
