"""The result of a comparison: what it keeps, its tables, and how two of them merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from crosslens.adapters.errors import InputError

from . import statistics
from .category import Category, Kept, Shape, Vectors
from .design import Between
from .direction import direction_tests
from .engine import KPIS, derive
from .examples import crossed
from .kernels import Array
from .omnibus import omnibus

if TYPE_CHECKING:
    from .window import Window

RANKS = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
MOST_PAIRED = 8
"""Categories up to which each is contrasted with each other; of more, each with all others together."""
_SHOWN = ("n", "mean", "sd", "min", *RANKS, "max", "missing")
_KEPT = "of kept examples"
_FROM_MOMENTS = (
    "n_a", "n_b", "mean_a", "mean_b", "difference", "se", "g", "g_low", "g_high", "t", "df", "p_welch", "tested",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a comparison is of; two that differ in any of it cannot be merged.

    Args:
        sites, kpis: whose figures were taken, in order.
        columns: names of the category columns.
        backend, library, model, weights, dtype: what ran; `weights` is a digest.
        seed, keep: which examples are kept, and how many of each category.
        directions, units: sites of whose mean vectors the whole, and each unit, is compared, with their sizes.
    """

    sites: list[str]
    kpis: list[str]
    columns: list[str]
    backend: str
    library: str
    model: str
    weights: str
    dtype: str
    seed: int
    keep: int
    directions: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)

    @property
    def crossed(self) -> str:
        """Name of the column that tells categories apart: the only one, or `crossed`, all of them joined."""
        return self.columns[0] if len(self.columns) == 1 else "crossed"

    def kpis_at(self, site: str) -> list[str]:
        """KPIs of a site; only an attention pattern has an entropy."""
        return [kpi for kpi in self.kpis if kpi != "entropy" or is_pattern(site)]

    @property
    def features(self) -> list[tuple[str, str]]:
        """(site, KPI) in the order of the figures of an example."""
        return [(site, kpi) for site in self.sites for kpi in self.kpis_at(site)]

    @property
    def shape(self) -> Shape:
        """Sizes of what is kept."""
        vector, units = sum(self.directions.values()), sum(self.units.values())
        return Shape(len(self.features), len(self.sites), vector, units, self.keep, self.seed)

    def difference(self, other: Facts) -> str:
        """What differs, in words; empty where nothing does."""
        mine, theirs = asdict(self), asdict(other)
        return "; ".join(f"{k}: {_differing(mine[k], theirs[k])}" for k in mine if mine[k] != theirs[k])


def is_pattern(site: str) -> bool:
    """Whether a site's rows are distributions."""
    return site.endswith("attn.pattern")


class Comparison:
    """Figures of sites by category, over the examples of a corpus.

    Attributes:
        facts: what was compared.
        complete: whether all examples were seen.
        problems: what of it could not be read, in words.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.complete = False
        self.problems: list[str] = []
        self._categories: dict[tuple[str, ...], Category] = {}

    def add(self, window: Window) -> None:
        """Take in a window."""
        for labels, sums in window.sums.items():
            rows = [i for i, example in enumerate(window.examples) if example.categories == labels]
            self.at(labels).add(
                [window.examples[i] for i in rows], window.figures[rows], window.vectors[rows], sums
            )  # fmt: skip

    def at(self, labels: tuple[str, ...]) -> Category:
        """What is kept of a category, by its label in each column; an empty one if it is new."""
        return self._categories.setdefault(labels, Category(self.facts.shape))

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
                out._categories[labels] = out.at(labels).merge(category)
        out.complete = self.complete and other.complete
        out.problems = [*self.problems, *other.problems]
        return out

    # ---- what a reader sees

    @property
    def n(self) -> int:
        """Number of examples."""
        return sum(category.n for category in self._categories.values())

    @property
    def categories(self) -> dict[str, int]:
        """Number of examples of each crossed category, in order of first appearance."""
        return {crossed(labels): category.n for labels, category in self._categories.items()}

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
            frame[self.facts.crossed] = crossed(labels)
            figures, seen = category.moments.figures(), category.moments.count > 0
            frame["n"] = figures["count"].astype(int)
            frame["mean"] = figures["mean"]
            frame["sd"] = np.sqrt(figures["variance"])
            frame["min"] = np.where(seen, category.low, np.nan)
            for name, column in zip(RANKS, category.quantiles(list(RANKS.values())).T, strict=True):
                frame[name] = column
            frame["max"] = np.where(seen, category.high, np.nan)
            frame["missing"] = category.missing.astype(int)
            frame["pooled"] = self._pooled(category)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _pooled(self, category: Category) -> Array:
        rows = []
        for i, site in enumerate(self.facts.sites):
            columns = [KPIS.index(name) for name in self.facts.kpis_at(site)]
            rows.append(derive(category.elements[i : i + 1], is_pattern(site))[0, columns])
        return np.concatenate(rows)

    @property
    def examples(self) -> pd.DataFrame:
        """The kept examples: number, text, pair, the category columns, and `crossed` where there are several."""
        rows = []
        for example in (kept.example for kept in self._kept()):
            labels = dict(zip(self.facts.columns, example.categories, strict=True))
            common: dict[str, Any] = {"number": example.number, "text": example.text, "pair": example.pair}
            rows.append({**common, **labels, self.facts.crossed: example.label})
        columns = dict.fromkeys(["number", "text", "pair", *self.facts.columns, self.facts.crossed])
        return pd.DataFrame(rows, columns=list(columns))

    @property
    def values(self) -> Array:
        """(kept example, feature) figures, in the order of `examples`; features as `facts.features`."""
        kept = [kept.figures for kept in self._kept()]
        return np.stack(kept) if kept else np.empty((0, len(self.facts.features)))

    @property
    def vectors(self) -> dict[str, Vectors]:
        """Site -> (kept example, d) mean vectors over the tokens, of `facts.directions`, in the order of `examples`."""
        kept = [kept.vector for kept in self._kept()]
        all_ = np.stack(kept) if kept else np.empty((0, self.facts.shape.vector), dtype=np.float32)
        sizes = self.facts.directions
        ends = np.cumsum(list(sizes.values())).tolist()
        return {site: all_[:, end - size : end] for (site, size), end in zip(sizes.items(), ends, strict=True)}

    @property
    def kept_numbers(self) -> set[int]:
        """Numbers of the kept examples."""
        return set().union(*(category.numbers for category in self._categories.values()))

    def _kept(self) -> list[Kept]:
        kept = [each for category in self._categories.values() for each in category.kept]
        return sorted(kept, key=lambda each: (each.example.number, each.example.mark))

    # ---- what differs

    def contrasts(self, column: str | None = None, **options: Any) -> pd.DataFrame:
        """Contrasts between categories at every site and KPI; columns as of `statistics.contrasts`, with site and kpi.

        Args:
            column: one of the category columns, for its main effect within strata of the others; None for the crossed
                category.
            options: of `statistics.contrasts`: between, permutations, seed, level. Of more than `MOST_PAIRED`
                categories each is contrasted with the rest, unless `between` says otherwise.

        While all examples are kept, all figures are of all of them. Where fewer are kept than were seen, means, g and
        Welch's test are from the moments of all, AUROC and permutations from those kept; paired designs and main
        effects are of those kept alone. `note` says so, and `.attrs["examples"]` how many are kept.
        """
        examples, values = self.examples, self.values
        name = self._column(column)
        others = [c for c in self.facts.columns if c != name]
        stratified = column is not None and len(self.facts.columns) > 1
        strata = [crossed(row) for row in examples[others].to_numpy().tolist()] if stratified else None
        pairs = [pair or None for pair in examples["pair"]]
        if options.get("between") is None:
            options["between"] = self._between(name)
        found = statistics.contrasts(
            values, examples[name].tolist(), names=self.facts.features, strata=strata,
            pairs=pairs if any(pairs) else None, **options,
        )  # fmt: skip
        if len(examples) < self.n and len(found):
            everywhere = np.ones(len(found), dtype=np.bool_)
            found = self._with_moments(found, options) if strata is None else _noted(found, _KEPT, everywhere)
        found.insert(0, "site", [feature[0] for feature in found["feature"]])
        found.insert(1, "kpi", [feature[1] for feature in found["feature"]])
        found.attrs["examples"] = f"{len(examples)} of {self.n}"
        return found

    def ranking(self, **options: Any) -> pd.DataFrame:
        """Where the categories differ most, strongest first; options as of `contrasts`."""
        return statistics.ranking(self.contrasts(**options))

    def omnibus(self, **options: Any) -> pd.DataFrame:
        """One test a site and KPI over all crossed categories, from the kept examples: see `omnibus.omnibus`."""
        examples = self.examples
        pairs = [pair or None for pair in examples["pair"]]
        labels = examples[self.facts.crossed].tolist()
        names = self.facts.features
        found = omnibus(self.values, labels, names=names, pairs=pairs if any(pairs) else None, **options)
        found.insert(0, "site", [feature[0] for feature in found["feature"]])
        found.insert(1, "kpi", [feature[1] for feature in found["feature"]])
        return found

    def directions(self, column: str | None = None, **options: Any) -> pd.DataFrame:
        """Whether categories lie apart in direction or distribution, at each site of `facts.directions`: one row each.

        Columns as of `direction.direction_tests`. From the mean vectors of the kept examples; versions of one item are
        one group. `.attrs["left_out"]` is the number of examples with a vector that is not finite.

        Args:
            column: one of the category columns; None for the crossed category.
            options: of `direction_tests`: permutations, folds, seed.

        Raises:
            InputError: no site's vectors were kept.
        """
        if not self.facts.directions:
            raise InputError("no vectors were kept; name the sites: compare(..., directions='blocks.*.resid_post')")
        examples, vectors = self.examples, self.vectors
        finite = np.all([np.isfinite(each).all(axis=1) for each in vectors.values()], axis=0)
        labels = examples[self._column(column)][finite].tolist()
        if len(set(labels)) < 2:
            return pd.DataFrame(columns=["site"])
        groups = [pair or f"example {n}" for pair, n in zip(examples["pair"], examples["number"], strict=True)]
        grouped = [group for group, use in zip(groups, finite, strict=True) if use] if any(examples["pair"]) else None
        found = direction_tests({s: v[finite] for s, v in vectors.items()}, labels, groups=grouped, **options)
        found.attrs["left_out"] = int((~finite).sum())
        return found

    def units(self, **options: Any) -> pd.DataFrame:
        """Contrasts of every unit of `facts.units`, from the moments of all examples' means over their tokens.

        Columns site, unit (its number on the flattened last axes), and those of `statistics.contrasts_from_moments`,
        which takes `options`.

        Raises:
            InputError: no units were kept.
        """
        if not self.facts.units:
            raise InputError("no units were kept; name the sites: compare(..., units='blocks.*.mlp.post')")
        names = [(site, unit) for site, size in self.facts.units.items() for unit in range(size)]
        found = self._from_moments([c.units for c in self._categories.values()], names, options)
        found.insert(0, "site", [feature[0] for feature in found["feature"]])
        found.insert(1, "unit", [feature[1] for feature in found["feature"]])
        return found

    def _from_moments(self, moments: Sequence[Any], names: Sequence[Any], options: dict[str, Any]) -> pd.DataFrame:
        figures = [each.figures() for each in moments]
        n, mean, variance = (np.stack([each[key] for each in figures]) for key in ("count", "mean", "variance"))
        if options.get("between") is None:
            options["between"] = self._between(self.facts.crossed)
        return statistics.contrasts_from_moments(n, mean, variance, list(self.categories), names=names, **options)

    def _with_moments(self, found: pd.DataFrame, options: dict[str, Any]) -> pd.DataFrame:
        """Contrasts of kept examples, with what moments of all say in its place where the test is unpaired."""
        mine = {key: value for key, value in options.items() if key in ("between", "level")}
        of_all = self._from_moments([c.moments for c in self._categories.values()], self.facts.features, mine)
        keys = ["a", "b", "feature"]
        other = of_all.set_index(keys).reindex(pd.MultiIndex.from_frame(found[keys])).reset_index(drop=True)
        use = ((found["tested"] != "paired") & (other["tested"] == "unpaired")).to_numpy()
        for name in _FROM_MOMENTS:
            found[name] = np.where(use, other[name], found[name])
        found = found.astype({"n_a": np.int64, "n_b": np.int64})
        found = _noted(found, "AUROC and permutations of kept examples", use)
        return statistics.with_q_values(_noted(found, _KEPT, ~use))

    def _between(self, column: str) -> Between:
        """What is contrasted with what, in order of first appearance among all examples."""
        found = list(self.categories)
        if column != self.facts.crossed:
            at = self.facts.columns.index(column)
            found = list(dict.fromkeys(labels[at] for labels in self._categories))
        if len(found) > MOST_PAIRED:
            return "rest"
        return [(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]

    def _column(self, column: str | None) -> str:
        name = column or self.facts.crossed
        if name not in (*self.facts.columns, self.facts.crossed):
            raise InputError(f"there is no category column {name!r}; there are {', '.join(self.facts.columns)}")
        return name

    # ---- files

    def to_html(self, path: str | Path, contrasts: pd.DataFrame | None = None, **options: Any) -> Path:
        """Write one self-contained page: heat map, distributions, ranking, examples.

        Args:
            contrasts: as `contrasts()` gave them; None computes them, with `options`.

        Raises:
            InputError: the file cannot be written.
        """
        from .page import page

        found = self.contrasts(**options) if contrasts is None else contrasts
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
        """What `save`, or `compare` with `out`, wrote.

        Of an unfinished or damaged one, what is whole: `complete` is then False, and `problems` says what is damaged.

        Raises:
            InputError: there is none, or it is of another version.
        """
        from .comparison_store import load

        return load(Path(folder))


def _noted(table: pd.DataFrame, note: str, rows: Any) -> pd.DataFrame:
    notes = table["note"].copy()
    notes[rows] = [f"{each}; {note}" if each else note for each in notes[rows]]
    return table.assign(note=notes)


def _differing(mine: Any, theirs: Any) -> str:
    """Two values that differ; of long lists, how many items and the first that only one has."""
    if not isinstance(mine, list | dict) or len(mine) + len(theirs) <= 8:
        return f"{mine} and {theirs}"
    only = [[item for item in one if item not in two] for one, two in ((mine, theirs), (theirs, mine))]
    shown = [f"{items[0]!r} only in the {side}" for items, side in zip(only, ("first", "second"), strict=True) if items]
    return f"{len(mine)} and {len(theirs)}, {', '.join(shown) or 'in another order'}"
