"""Where categories differ: effect sizes, intervals, p and q values of every figure, and their ranking.

The example is the unit of replication: one row of `values` is what one example gave, whatever number of tokens it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from crosslens.adapters.errors import InputError

from .intervals import Array, auroc, hedges
from .permutation import Effect, Index, Labels, effect, patterns, permutation_p, relabellings

FIGURES = (
    *("n_a", "n_b", "mean_a", "mean_b", "difference", "se", "g", "g_low", "g_high", "auroc", "auroc_low", "auroc_high"),
    *("t", "df", "p_welch", "p_perm", "p_maxt"),
)
COLUMNS = ("feature", "a", "b", *FIGURES, "q_bh", "q_by", "tested", "note")
"""The columns of a table of contrasts."""

REST = "rest"
Between = Sequence[tuple[Hashable, Hashable]] | Literal["rest"] | None


def contrasts(
    values: ArrayLike,
    categories: Sequence[Hashable],
    *,
    names: Sequence[Hashable],
    pairs: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    between: Between = None,
    permutations: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Contrast categories, figure by figure: one row for each two categories and each feature.

    Args:
        values: (example, feature) figures; NaN where an example has none. Infinite figures count as missing, and the
            note says so.
        categories: of each example.
        names: of each feature; any hashable, such as (site, KPI).
        pairs: item of each example, None or NaN for none. Examples of one item under different categories are tested as
            pairs; if no item has both categories of a contrast, that contrast is unpaired.
        strata: of each example, such as its labels in the other columns of a crossed design. The contrast is then the
            main effect within strata, and labels are permuted within them; with pairs, the two sides of an item are
            compared within strata and averaged over them, so that the item stays the unit.
        between: pairs of categories, default all in order of first appearance; "rest" for each against all others.
        permutations: random relabellings for p_perm and p_maxt; 0 for none. All of them, if there are no more.
        level: of the intervals.

    Returns:
        A frame with `COLUMNS`; empty for fewer than two categories.

        a, b, n_a, n_b, mean_a, mean_b: the categories, and the plain means over the examples that took part.
        difference, se: a - b, and its standard error (HC2, see `permutation`). Without strata, or in pairs, difference
            is mean_a - mean_b.
        g, g_low, g_high: Hedges' g. Unpaired, the standardiser is the pooled standard deviation within categories (and
            strata), and the interval inverts the noncentral t. Paired, it is the average one, d_av =
            difference / sqrt((var_a + var_b) / 2), so that both designs are on one scale; its degrees of freedom,
            2 (n - 1) / (1 + r^2) for a correlation r within pairs, are Cousineau's (2020,
            doi:10.20982/tqmp.16.4.p418). Infinite where figures are constant within categories but differ.
        auroc, auroc_low, auroc_high: chance that a figure of a exceeds one of b, with DeLong's interval (`intervals`);
            with strata, of figures less the level of their stratum.
        t, df, p_welch: Welch's t test; paired, the paired t test. NaN where se is 0 but difference is not.
        p_perm: permutation p of |t|, of this feature alone.
        p_maxt: adjusted for all features of this contrast, by max-T.
        q_bh, q_by: Benjamini-Hochberg and Benjamini-Yekutieli, over all rows, from p_welch, or p_perm where that is NaN.
        tested: "unpaired", "paired" or "none"; note: what was left out, and why there is no test.

    Raises:
        InputError: lengths differ, an example has no category, `between` names an unknown category, an option is out of
            range, or an item occurs twice in a category (and stratum).
    """
    data = _Data.of(values, categories, names, pairs, strata)
    _check_options(permutations, level)
    frames = []
    for a, b in _between(data.labels, between):
        contrast = _Contrast.of(data, a, b)
        frames.append(contrast.table(data.names, permutations, np.random.default_rng(seed), level))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return with_q_values(pd.concat(frames, ignore_index=True))


def with_q_values(table: pd.DataFrame) -> pd.DataFrame:
    """The table with q_bh and q_by over all its rows, in the order of `COLUMNS`."""
    p = table["p_welch"].where(table["p_welch"].notna(), table["p_perm"]).to_numpy(dtype=np.float64)
    table = table.assign(q_bh=q_values(p, "bh"), q_by=q_values(p, "by"))
    return table[list(COLUMNS)]


def q_values(p: ArrayLike, method: Literal["bh", "by"]) -> Array:
    """False discovery rates over all p that are not NaN; "by" holds under any dependence between them."""
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    here = ~np.isnan(p)
    if here.any():
        q[here] = stats.false_discovery_control(p[here], method=method)
    return q


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """Features in order of where categories differ most: of each, the row of its largest contrast.

    The order is that of `bound`, the bound of the interval of |g| that is nearer to 0, or 0 where the interval holds 0;
    then of |g|. A large g from few examples has a wide interval, so that sorting by |g| itself would put the least
    certain features first.

    Args:
        table: of contrasts.

    Returns:
        The rows, with `rank` from 1 and `bound` in front. Features without a test come last.
    """
    g = table["g"].to_numpy(dtype=np.float64)
    low, high = (table[name].to_numpy(dtype=np.float64) for name in ("g_low", "g_high"))
    bound = np.where(
        np.isnan(g), np.nan, np.maximum(0.0, np.nan_to_num(np.maximum(low, -high), nan=0.0, posinf=np.inf))
    )
    keyed = table.assign(bound=bound, size=np.abs(g))
    keyed = keyed.sort_values(["bound", "size"], ascending=False, kind="stable", na_position="last")
    keyed = keyed.drop(columns="size").drop_duplicates("feature").reset_index(drop=True)
    keyed.insert(0, "rank", np.arange(1, len(keyed) + 1))
    keyed.insert(1, "bound", keyed.pop("bound"))
    return keyed


@dataclass(frozen=True)
class _Data:
    """Checked inputs. Labels, items and strata are numbers, -1 for none; `labels` says which category a number is."""

    values: Array
    infinite: Labels
    names: list[Hashable]
    labels: list[Hashable]
    category: Index
    item: Index | None
    items: list[Hashable]
    stratum: Index

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        categories: Sequence[Hashable],
        names: Sequence[Hashable],
        pairs: Sequence[Hashable] | None,
        strata: Sequence[Hashable] | None,
    ) -> _Data:
        x = np.asarray(values, dtype=np.float64)
        if x.ndim != 2:
            raise InputError(f"values are (example, feature), not of shape {x.shape}")
        for what, given, size in (
            ("categories", categories, len(x)),
            ("pairs", pairs, len(x)),
            ("strata", strata, len(x)),
            ("names", names, x.shape[1]),
        ):
            if given is not None and len(given) != size:
                raise InputError(f"{len(given)} {what} for values of shape {x.shape}; there must be {size}")
        category, labels = _numbered(categories)
        if (category < 0).any():
            raise InputError(f"example {int(np.argmax(category < 0))} has no category; leave it out or give it one")
        item, items = (None, []) if pairs is None else _numbered(pairs)
        stratum = np.zeros(len(x), dtype=np.int64) if strata is None else _numbered(strata)[0]
        infinite = np.isinf(x)
        return cls(np.where(infinite, np.nan, x), infinite, list(names), labels, category, item, items, stratum)


def _numbered(labels: Sequence[Hashable]) -> tuple[Index, list[Hashable]]:
    """Numbers of labels in order of first appearance, -1 for None and NaN; and the labels."""
    column = pd.Series(list(labels), dtype=object)
    codes, found = pd.factorize(column)
    return np.asarray(codes, dtype=np.int64), list(found)


def _check_options(permutations: int, level: float) -> None:
    if permutations < 0:
        raise InputError(f"permutations is {permutations}; it is a number from 0")
    if not 0 < level < 1:
        raise InputError(f"level is {level}; it lies between 0 and 1, such as 0.95")


def _between(labels: list[Hashable], between: Between) -> list[tuple[Hashable, Hashable]]:
    if between is None:
        return [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    if isinstance(between, str):
        if between != REST:
            raise InputError(f"between is {between!r}; it is pairs of categories, or {REST!r}")
        if REST in labels:
            raise InputError(f"a category is called {REST!r}, which is what all others together are called; rename it")
        return [(a, REST) for a in labels] if len(labels) > 1 else []
    for a, b in between:
        for label in (a, b):
            if label not in labels:
                raise InputError(f"between names category {label!r}; there are {', '.join(map(repr, labels))}")
        if a == b:
            raise InputError(f"between contrasts category {a!r} with itself")
    return list(between)


@dataclass(frozen=True)
class _Contrast:
    """Two categories with the examples of both: figures, which are of the first, and the block of each."""

    a: Hashable
    b: Hashable
    x: Array
    infinite: Index  # by feature
    first: Labels
    block: Index
    paired: bool
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, data: _Data, a: Hashable, b: Hashable) -> _Contrast:
        one = data.category == data.labels.index(a)
        other = ~one if b == REST and REST not in data.labels else data.category == data.labels.index(b)
        rows = np.flatnonzero(one | other)
        x, first, stratum = data.values[rows], one[rows], data.stratum[rows]
        infinite = np.asarray(data.infinite[rows].sum(axis=0), dtype=np.int64)
        if data.item is None:
            return cls(a, b, x, infinite, first, stratum, paired=False)
        item = data.item[rows]
        _no_item_twice(data, rows)
        merged, alone = _pair_up(x, first, stratum, item)
        if merged is None:
            return cls(a, b, x, infinite, first, stratum, False, ["no pairs, tested unpaired"])
        n = len(merged) // 2
        notes = [f"{alone} examples without a partner left out"] if alone else []
        return cls(a, b, merged, infinite, np.repeat([True, False], n), np.tile(np.arange(n), 2), True, notes)

    def table(self, names: list[Hashable], permutations: int, rng: np.random.Generator, level: float) -> pd.DataFrame:
        size = len(names)
        found = {name: np.full(size, np.nan) for name in FIGURES}
        notes = [list(self.notes) for _ in names]
        tested = np.zeros(size, dtype=np.bool_)
        for columns, have in patterns(np.isnan(self.x)):
            rows = have[_in_mixed_blocks(self.first[have], self.block[have])]
            # where no test is possible the means are those of all that there is
            usable = min(self.first[rows].sum(), (~self.first[rows]).sum()) > 1
            self._means(found, columns, rows if usable else have)
            if usable:
                tested[columns] = True
                self._figures(found, columns, rows, level)
            for column in columns.tolist():
                notes[column] += self._notes(column, have, rows, usable)
        for column in np.flatnonzero(tested & (found["se"] == 0)).tolist():
            notes[column].append(
                "all values equal" if found["difference"][column] == 0 else "constant within categories"
            )
        if permutations and tested.any():
            labels = relabellings(self.first, self.block, permutations, rng)
            found["p_perm"], found["p_maxt"] = permutation_p(self.x, labels, self.block, tested)
        table = pd.DataFrame(found)
        table.insert(0, "feature", pd.Series(names, dtype=object))
        table.insert(1, "a", pd.Series([self.a] * size, dtype=object))
        table.insert(2, "b", pd.Series([self.b] * size, dtype=object))
        table["tested"] = np.where(tested, "paired" if self.paired else "unpaired", "none")
        table["note"] = ["; ".join(each) for each in notes]
        return table.astype({"n_a": np.int64, "n_b": np.int64})

    def _means(self, found: dict[str, Array], columns: Index, rows: Index) -> None:
        for side, of in (("a", self.first[rows]), ("b", ~self.first[rows])):
            found[f"n_{side}"][columns] = of.sum()
            if of.any():
                found[f"mean_{side}"][columns] = self.x[np.ix_(rows[of], columns)].mean(axis=0)

    def _figures(self, found: dict[str, Array], columns: Index, rows: Index, level: float) -> None:
        x, first, block = self.x[np.ix_(rows, columns)], self.first[rows], self.block[rows]
        fit = effect(x, first, block)
        if self.paired:
            sd, se, df = _average_sd(x[first], x[~first], fit)
        else:
            sd, se, df = fit.sd, fit.sd / np.sqrt(fit.weight), np.full(len(columns), fit.sd_df)
            if block.min() < block.max():
                x = x - fit.level
        g = hedges(fit.difference, sd, se, df, level)
        area = auroc(x, first, level, paired=self.paired)
        for name, figure in zip(FIGURES[4:], (fit.difference, fit.se, *g, *area, *welch(fit)), strict=False):
            found[name][columns] = figure

    def _notes(self, column: int, have: Index, rows: Index, usable: np.bool_ | bool) -> Iterator[str]:
        everything, lacking = len(self.x), len(self.x) - len(have)
        what = "pair" if self.paired else "example"
        total = everything // 2 if self.paired else everything
        if self.paired:
            lacking = total - len(rows) // 2 if usable else total - len(np.unique(self.block[have]))
        if lacking:
            yield f"{'NaN or infinite' if self.infinite[column] else 'NaN'} in {lacking} of {total} {what}s"
        if not usable:
            counts = (int(self.first[have].sum()), int((~self.first[have]).sum()))
            once = [str(name) for name, count in zip((self.a, self.b), counts, strict=True) if count == 1]
            never = [str(name) for name, count in zip((self.a, self.b), counts, strict=True) if count == 0]
            if never:
                yield f"no figures of {' and '.join(never)}"
            if once:
                yield f"{' and '.join(once)} seen once"
            if not never and not once:
                yield "fewer than two complete pairs" if self.paired else "no stratum holds two of both categories"
        elif not self.paired and len(rows) < len(have):
            yield f"{len(have) - len(rows)} examples in strata of one category left out"


def welch(fit: Effect) -> tuple[Array, Array, Array]:
    """t, its degrees of freedom and two-sided p; 0 and 1 where nothing differs, p NaN where t is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((fit.se == 0) & (fit.difference == 0), 0.0, fit.difference / fit.se)
    p = np.where(t == 0, 1.0, 2 * stats.t.sf(np.abs(t), fit.df))
    return t, fit.df, np.where(np.isinf(t), np.nan, p)


def _average_sd(a: Array, b: Array, fit: Effect) -> tuple[Array, Array, Array]:
    """Standardiser of d_av, the standard error of the mean difference, and the standardiser's degrees of freedom."""
    n = len(a)
    var_a, var_b = a.var(axis=0, ddof=1), b.var(axis=0, ddof=1)
    covariance = ((a - a.mean(axis=0)) * (b - b.mean(axis=0))).sum(axis=0) / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.nan_to_num(covariance**2 / (var_a * var_b), nan=0.0, posinf=0.0)
    return np.sqrt((var_a + var_b) / 2), fit.se, 2 * (n - 1) / (1 + np.minimum(r2, 1))


def _in_mixed_blocks(first: Labels, block: Index) -> Labels:
    """Which examples are in a block that holds both categories; no others say anything about their difference."""
    size = int(block.max(initial=0)) + 1
    ones, all_ = np.bincount(block[first], minlength=size), np.bincount(block, minlength=size)
    return np.asarray(((ones > 0) & (ones < all_))[block])


def _no_item_twice(data: _Data, rows: Index) -> None:
    assert data.item is not None
    keys = pd.DataFrame({"item": data.item, "category": data.category, "stratum": data.stratum}).iloc[rows]
    twice = keys[(keys["item"] >= 0) & keys.duplicated()]
    if len(twice):
        item, category = data.items[twice["item"].iloc[0]], data.labels[twice["category"].iloc[0]]
        raise InputError(
            f"pair {item!r} occurs twice in category {category!r}; an item has one example in each category"
        )


def _pair_up(x: Array, first: Labels, stratum: Index, item: Index) -> tuple[Array | None, int]:
    """(2 item, feature) the first side of every complete pair, then the second; and how many examples are in none.

    A side is the mean of its examples within a stratum, and the mean of that over the strata that hold both sides.
    """
    keys = pd.DataFrame({"item": item, "stratum": stratum, "first": first})
    keys = keys[keys["item"] >= 0]
    both = keys.groupby(["item", "stratum"])["first"].transform("nunique") == 2
    keys = keys[both]
    if keys.empty:
        return None, len(x)
    count = keys.groupby(["item", "stratum", "first"])["first"].transform("size")
    strata = keys.groupby("item")["stratum"].transform("nunique")
    number, found = pd.factorize(keys["item"])
    side = number + np.where(keys["first"], 0, len(found))
    weights = (1 / (count * strata)).to_numpy(dtype=np.float64)
    mean = sparse.csr_array((weights, (side, keys.index.to_numpy())), shape=(2 * len(found), len(x)))
    return np.asarray(mean @ x, dtype=np.float64), len(x) - len(keys)


__all__ = ["COLUMNS", "Between", "contrasts", "q_values", "ranking", "welch", "with_q_values"]
