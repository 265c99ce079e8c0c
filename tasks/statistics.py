"""Where categories differ: effect sizes, intervals, p and q values of every figure, and their ranking.

The example is the unit of replication: one row of `values` is what one example gave, whatever number of tokens it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from crosslens.adapters.errors import InputError

from .design import REST, Between, Design, check_options, contrasted, in_mixed_blocks, no_item_twice, pair_up
from .intervals import Array, auroc, hedges
from .permutation import Effect, Index, Labels, effect, patterns, permutation_p, relabellings

FIGURES = (
    *("n_a", "n_b", "mean_a", "mean_b", "difference", "se", "g", "g_low", "g_high", "auroc", "auroc_low", "auroc_high"),
    *("t", "df", "p_welch", "p_perm", "p_maxt"),
)
COLUMNS = ("feature", "a", "b", *FIGURES, "q_bh", "q_by", "tested", "note")
"""The columns of a table of contrasts."""


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
            pairs; if no item has both categories of a contrast, that contrast is unpaired. Against "rest", the other
            side of an item is the mean of its other categories, and permuted signs are a test for large samples only.
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
            doi:10.20982/tqmp.16.4.p418), and the interval is approximate: simulated 95 % intervals of 5 to 50 pairs
            covered in 93 to 95.5 %. Infinite where figures are constant within categories but differ.
        auroc, auroc_low, auroc_high: chance that a figure of a exceeds one of b, with DeLong's interval (`intervals`);
            with strata, of figures less the level of their stratum.
        t, df, p_welch: Welch's t test; paired, the paired t test. NaN where se is 0 but difference is not.
        p_perm: permutation p of |t|, of this feature alone.
        p_maxt: adjusted for all features of this contrast, by max-T.
        q_bh, q_by: Benjamini-Hochberg and Benjamini-Yekutieli, over all rows, from p_welch, or from p_perm where
            p_welch is NaN.
        tested: "unpaired", "paired" or "none"; note: what was left out, and why there is no test.

    Raises:
        InputError: lengths differ, an example has no category, `between` names an unknown category, an option is out of
            range, or an item occurs twice in a category (and stratum).
    """
    data = Design.of(values, categories, names, pairs, strata)
    check_options(permutations, level)
    frames = []
    for a, b in contrasted(data.labels, between):
        contrast = _Contrast.of(data, a, b)
        frames.append(contrast.table(data.names, permutations, np.random.default_rng(seed), level))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return with_q_values(pd.concat(frames, ignore_index=True))


def contrasts_from_moments(
    n: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    categories: Sequence[Hashable],
    *,
    names: Sequence[Hashable],
    between: Between = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Contrasts where only moments were kept, as after a merge: Welch's t test and g; no AUROC, no permutation.

    Args:
        n: (category, feature) or (category,) number of examples.
        mean, var: (category, feature); var divides by n - 1. What they say where n is too small is not read.
        categories: of each row. names: of each feature. between, level: as for `contrasts`.

    Returns:
        A frame with `COLUMNS`; the figures that need examples are NaN.

    Raises:
        InputError: shapes do not fit, a category occurs twice, a variance or a number is negative, or as `contrasts`.
    """
    means, variances = np.asarray(mean, dtype=np.float64), np.asarray(var, dtype=np.float64)
    counts = np.asarray(n, dtype=np.float64)
    shape = (len(categories), len(names))
    if counts.shape == shape[:1]:
        counts = np.repeat(counts[:, None], shape[1], axis=1)
    if not means.shape == variances.shape == counts.shape == shape:
        raise InputError(f"n, mean and var have shapes {counts.shape}, {means.shape}, {variances.shape}, not {shape}")
    check_options(0, level)
    labels = list(categories)
    if len(set(labels)) < len(labels):
        raise InputError("a category has more than one row of moments; merge them first")
    if not (counts >= 0).all() or (variances < 0).any():
        raise InputError("a number of examples or a variance is negative or missing")
    frames = []
    for a, b in contrasted(labels, between):
        i = labels.index(a)
        others = [k for k in range(len(labels)) if k != i] if b not in labels else [labels.index(b)]
        second = pooled(counts[others], means[others], variances[others])
        frames.append(_from_moments(a, b, (counts[i], means[i], variances[i]), second, list(names), level))
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return with_q_values(pd.concat(frames, ignore_index=True))


def pooled(n: Array, mean: Array, var: Array) -> tuple[Array, Array, Array]:
    """Moments of all rows together, from those of each (row, feature): Chan, Golub and LeVeque 1983."""
    held = np.where(n > 0, mean, 0.0)
    within = (np.where(n > 1, var, 0.0) * np.maximum(n - 1, 0)).sum(axis=0)
    total = n.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (n * held).sum(axis=0) / total
        spread = within + (n * (held - centre) ** 2).sum(axis=0)
        return total, np.asarray(centre), np.asarray(spread / (total - 1))


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
    def of(cls, data: Design, a: Hashable, b: Hashable) -> _Contrast:
        one = data.category == data.labels.index(a)
        other = ~one if b == REST and REST not in data.labels else data.category == data.labels.index(b)
        rows = np.flatnonzero(one | other)
        x, first, stratum = data.values[rows], one[rows], data.stratum[rows]
        infinite = np.asarray(data.infinite[rows].sum(axis=0), dtype=np.int64)
        if data.item is None:
            return cls(a, b, x, infinite, first, stratum, paired=False)
        item = data.item[rows]
        no_item_twice(data, rows)
        merged, alone = pair_up(x, first, stratum, item)
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
            rows = have[in_mixed_blocks(self.first[have], self.block[have])]
            # where no test is possible the means are those of all that there is
            usable = min(self.first[rows].sum(), (~self.first[rows]).sum()) > 1
            self._means(found, columns, rows if usable else have)
            if usable:
                tested[columns] = True
                self._figures(found, columns, rows, level)
            for column in columns.tolist():
                notes[column] += self._notes(column, have, rows, usable)
        for column in np.flatnonzero(tested & (found["se"] == 0)).tolist():
            notes[column].append(_flat(found["difference"][column], found["g"][column]))
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
                x = np.round(x / np.maximum(np.abs(x).max(axis=0), np.finfo(np.float64).tiny), 9)  # equal stays equal
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
        if self.paired and not usable:
            yield "fewer than two complete pairs"
        elif not usable:
            counts = (int(self.first[have].sum()), int((~self.first[have]).sum()))
            once = [str(name) for name, count in zip((self.a, self.b), counts, strict=True) if count == 1]
            never = [str(name) for name, count in zip((self.a, self.b), counts, strict=True) if count == 0]
            if never:
                yield f"no figures of {' and '.join(never)}"
            if once:
                yield f"{' and '.join(once)} seen once"
            if not never and not once:
                yield "fewer than two of each category in strata that hold both"
        elif not self.paired and len(rows) < len(have):
            yield f"{len(have) - len(rows)} examples in strata of one category left out"


def _from_moments(
    a: Hashable, b: Hashable, one: tuple[Array, ...], two: tuple[Array, ...], names: list[Hashable], level: float
) -> pd.DataFrame:
    (n, mean_a, var_a), (m, mean_b, var_b) = one, two
    tested = (n > 1) & (m > 1) & np.isfinite(mean_a - mean_b) & np.isfinite(var_a + var_b)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = var_a / n, var_b / m
        se, df = np.sqrt(u + v), (u + v) ** 2 / (u * u / (n - 1) + v * v / (m - 1))
        sd = np.sqrt(((n - 1) * var_a + (m - 1) * var_b) / (n + m - 2))
        weight = n * m / (n + m)
        fit = Effect(mean_a - mean_b, se, df, sd, np.nan, np.nan, sd[None])
        g = hedges(fit.difference, sd, sd / np.sqrt(weight), n + m - 2, level)
    tests = (fit.difference, se, *g, *[np.full(n.shape, np.nan)] * 3, *welch(fit), *[np.full(n.shape, np.nan)] * 2)
    found = dict(zip(FIGURES[4:], [np.where(tested, each, np.nan) for each in tests], strict=True))
    table = pd.DataFrame({"feature": pd.Series(names, dtype=object)})
    table = table.assign(a=pd.Series([a] * len(names), dtype=object), b=pd.Series([b] * len(names), dtype=object))
    table = table.assign(n_a=n.astype(np.int64), n_b=m.astype(np.int64))
    table = table.assign(mean_a=np.where(n > 0, mean_a, np.nan), mean_b=np.where(m > 0, mean_b, np.nan), **found)
    notes = ["from moments"] * len(names)
    for column, usable in enumerate(tested.tolist()):
        few = [str(name) for name, count in ((a, n[column]), (b, m[column])) if count < 2]
        if few:
            notes[column] += f"; {' and '.join(few)} seen less than twice"
        elif not usable:
            notes[column] += "; moments are not finite"
        elif se[column] == 0:
            notes[column] += "; " + _flat(found["difference"][column], found["g"][column])
    return table.assign(tested=np.where(tested, "unpaired", "none"), note=notes)


def _flat(difference: float, g: float) -> str:
    """What a standard error of 0 comes from."""
    if difference == 0:
        return "all values equal" if np.isnan(g) or g == 0 else "all differences equal"
    return "constant within categories" if np.isinf(g) else "all differences equal"


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
