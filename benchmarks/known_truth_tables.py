"""What finished cells of the known-truth benchmark say: averages with intervals over seeds, as Markdown and csv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from crosslens.adapters import InputError
from crosslens.tasks.parts import replace_file
from crosslens.tasks.planting import KINDS

from .known_truth_ways import LEVEL, OURS, WAYS

FIGURES = ("auroc", "ap", "first", "power", "false", "fdp")
COMPARED = ("auroc", "first", "power")
OTHERS = tuple(way for way in WAYS if not way.startswith(OURS))
NULLS = ("forward", "training")


def as_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a cell, way and count: kind, size, seed, cpu_s of the cell, way, n, and what `judged` says.

    Args:
        records: of the cells' file, each with `found`: by way and figure, the values at each of the counts `n`.
    """
    rows = []
    for record in records:
        common = {name: record[name] for name in ("kind", "size", "seed", "cpu_s")}
        for way, figures in record["found"].items():
            for i, n in enumerate(record["n"]):
                rows.append({**common, "way": way, "n": n, **{name: values[i] for name, values in figures.items()}})
    return pd.DataFrame(rows)


def interval(by_seed: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by Student's t; the seed is the unit."""
    values = np.asarray(by_seed, dtype=np.float64)
    half = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    )
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def averages(table: pd.DataFrame) -> pd.DataFrame:
    """One row a kind, size, way and count: seeds, and of each figure the mean and its interval; nulls by Wilson's."""
    rows = []
    for (kind, size, way, n), group in table.groupby(["kind", "size", "way", "n"], sort=False):
        row: dict[str, Any] = {"kind": kind, "size": size, "way": way, "n": n, "seeds": len(group)}
        for name in FIGURES:
            if kind in NULLS:
                if name != "false":
                    continue
                found = (group[name].mean(), *wilson(int(group[name].sum()), len(group)))
            else:
                found = _within(interval(group[name].tolist()))
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    found = stats.binomtest(hits, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """One row a way and count: every figure over all that was planted, mean of seeds and interval, as text."""
    planted = table[~table["kind"].isin(NULLS)]
    means = planted.groupby(["way", "n", "seed"], sort=False)[list(FIGURES)].mean()
    rows = []
    for (way, n), group in means.groupby(["way", "n"], sort=False):
        rows.append({"way": way, "n": n, **{name: _shown(_within(interval(group[name].tolist()))) for name in FIGURES}})
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """One row a way: share of the runs without a difference in which it declares one, by pass and count."""
    found: dict[str, dict[str, str]] = {way: {"way": way} for way in WAYS}
    nulls = table[table["kind"].isin(NULLS)]
    for key, group in nulls.groupby(["kind", "n", "way"], sort=False):
        kind, n, way = cast(tuple[str, int, str], key)
        hits = int(group["false"].sum())
        low, high = wilson(hits, len(group))
        found[way][f"{kind}, n {n}"] = f"{hits / len(group):.3f} ({low:.3f} to {high:.3f})"
    return pd.DataFrame(found.values())


def power(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """One row a way: mean power by size and count."""
    part = table[table["kind"] == kind]
    wide = part.pivot_table(index="way", columns=["size", "n"], values="power", sort=False)
    wide.columns = pd.Index([f"{size:g}, n {n}" for size, n in cast(Iterable[tuple[float, int]], wide.columns)])
    return pd.DataFrame(wide.map("{:.2f}".format).reset_index())


def by_kind(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """One row a way: a figure by kind, over all sizes, at the largest count."""
    part = table[~table["kind"].isin(NULLS) & (table["n"] == table["n"].max())]
    wide = part.pivot_table(index="way", columns="kind", values=figure, sort=False)
    return pd.DataFrame(wide.map("{:.2f}".format).rename_axis(columns=None).reset_index())


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """`OURS` minus each other way on the same runs, by kind, count and figure: mean over seeds, and its interval."""
    planted = table[~table["kind"].isin(NULLS)]
    wide = planted.groupby(["way", "kind", "n", "seed"], sort=False)[list(COMPARED)].mean()
    rows = []
    for way in OTHERS:
        gap = pd.DataFrame(wide.xs(OURS)) - pd.DataFrame(wide.xs(way))
        for (kind, n), group in gap.groupby(["kind", "n"], sort=False):
            for figure in COMPARED:
                mean, low, high = interval(group[figure].tolist())
                rows.append(
                    {
                        "way": way,
                        "kind": kind,
                        "n": n,
                        "figure": figure,
                        "ours minus its": mean,
                        "low": low,
                        "high": high,
                    }
                )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def _within(found: tuple[float, float, float]) -> tuple[float, float, float]:
    """An interval of a share, cut at 0 and 1."""
    return found[0], max(0.0, found[1]), min(1.0, found[2])


def _shown(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def write(out: Path, table: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    """The page and the csv beside it.

    Raises:
        InputError: they cannot be written.
    """
    for path, text in ((out.with_suffix(".csv"), _csv(averages(table))), (out, page(table, facts))):
        try:
            replace_file(path, text.encode())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def page(table: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    settings, machine = facts["settings"], facts["environment"]
    planted = table[~table["kind"].isin(NULLS)]
    seeds, counts = planted["seed"].nunique(), ", ".join(map(str, settings["counts"]))
    cpu = table.drop_duplicates(["kind", "size", "seed"])["cpu_s"].sum()
    kinds = [{"kind": k, "planted at": at, "sizes": ", ".join(f"{s:g}" for s in sizes), "what": KINDS[k]}
             for k, (at, sizes) in settings["places"].items()]  # fmt: skip
    nulls = {kind: table[table["kind"] == kind]["seed"].nunique() for kind in NULLS}
    ways = pd.DataFrame([{"way": way, "how": how} for way, how in WAYS.items()])
    command = (
        f"python -m crosslens.benchmarks.known_truth --out known_truth.md --seeds {seeds} --nulls {nulls['forward']} "
        f"--training-nulls {nulls['training']} --permutations {settings['permutations']}"
    )
    parts = [
        "# Known truth: where differences were planted, and who finds them",
        f"`{command}`, {seeds} seeds, {cpu:.0f} s of CPU time on a {machine['cores']['physical']}-core "
        f"{platform_of(machine)} CPU, torch {machine['versions']['torch']}.",
        _METHOD.format(seeds=seeds, counts=counts, permutations=settings["permutations"], level=LEVEL, **nulls),
        markdown(pd.DataFrame(kinds)),
        markdown(ways),
        "## Calibration",
        _CALIBRATION.format(level=LEVEL),
        markdown(calibration(table)),
        _verdict(table),
        "## All that was planted",
        _OVERALL.format(seeds=seeds),
        markdown(overall(table)),
        "## Kind by kind",
        f"Over all sizes, n {max(settings['counts'])}. AUROC of the ranking:",
        markdown(by_kind(table, "auroc")),
        "How often the first affected place is named:",
        markdown(by_kind(table, "first")),
        "## Power, by size and number of examples",
        *[text for kind in settings["places"] for text in (f"### {kind}", markdown(power(table, kind)))],
        "## Where this engine loses",
        *_losses(table),
        _NOT,
    ]
    return "\n\n".join(parts) + "\n"


def platform_of(machine: Mapping[str, Any]) -> str:
    """Class of the processor, such as x86."""
    text = str(machine["platform"]).lower()
    if "x86" in text or "amd64" in text:
        return "x86"
    return "ARM" if "aarch64" in text or "arm64" in text else "other"


def _verdict(table: pd.DataFrame) -> str:
    """Which ways declare more than they may, by the lower bound of Wilson's interval."""
    found = averages(table[table["kind"].isin(NULLS)])
    over = found[found["false_low"] > LEVEL]
    if over.empty:
        return f"No way's interval lies above {LEVEL}."
    named = [f"{r.way} ({r.kind}, n {r.n}: {r.false:.3f})" for r in over.itertuples()]
    return (
        f"Above {LEVEL}, by the whole interval: {'; '.join(named)}. What these declare counts for less than it seems."
    )


def _losses(table: pd.DataFrame) -> list[str]:
    gaps = differences(table)
    worse, better = gaps[gaps["high"] < 0], gaps[gaps["low"] > 0]
    text = (
        f"`{OURS}` against each other way on the same runs: {len(gaps)} comparisons by way, kind, n and figure. In "
        f"{len(better)} the whole interval of the difference is in its favour, in {len(worse)} in the other's, and "
        f"{len(gaps) - len(better) - len(worse)} are open. The intervals are of single comparisons: of as "
        f"many that differ by nothing about {round(0.025 * len(gaps))} would fall on either side. Joining figures and "
        "directions costs half the level of each, which is the price where one of them alone, or a probe, would do."
    )
    if worse.empty:
        return [text]
    counts = worse.groupby(["way", "kind"], sort=False).agg(
        comparisons=("figure", lambda f: ", ".join(f"{name} {n}x" for name, n in f.value_counts(sort=False).items())),
        worst=("ours minus its", "min"),
    )
    counts["worst"] = counts["worst"].map("{:+.2f}".format)
    return [
        text,
        "Where it loses, by whom and kind; the worst is its figure minus theirs:",
        markdown(counts.reset_index()),
    ]


_METHOD = """Tiny Llamas of random weights (3 blocks, 17 watched places, another model for each of {seeds} seeds) read
random texts of 8 to 24 tokens in two categories; in one of them a difference is planted. For "exploding" and
"vanishing" the same models are trained by gradient descent, in steps of two categories in random order, and the places
are the gradients. Each way ranks the places and declares those where it holds a difference for shown, at {level} over
all of them, with {permutations} relabellings where it needs any. n is the number of examples (or steps) of each
category: {counts}. Beside these are runs in which nothing is planted: {forward} forward, {training} of training. The
sizes, and how the two rankings of this engine are joined, were settled on other seeds.

A place is affected if it is the planted one or computed from it, however little of the difference is left there: the
norm of a block takes most of a change of scale away, and what stays may be too small for anyone to find. Power
therefore need not come near 1. Of gradients, the affected are those that have come back through the planted place."""
_CALIBRATION = """Share of the runs without a difference in which a way declares one, with Wilson's 95 % interval.
Nominal is {level}, and all that is declared there is false: the share is the family-wise error and the false discovery
rate at once."""
_OVERALL = """Means over all kinds and sizes, with 95 % intervals by Student's t over {seeds} seeds. auroc, ap: of the
ranking, affected places against the others. first: how often the first place that is declared, in the order of
execution, is the first that is affected. power: share of the affected places that are declared. false: share of runs in
which a place that is not affected is declared; fdp: share of the declared places that are not affected. All runs of one
seed share their texts, so that a difference which came by chance is in all of them: the seed is the unit, and where few
of them have one the interval is wide."""
_NOT = """## What is not to be concluded

- Models are tiny and their weights random; texts are letters. Sizes at which a difference is found here say nothing
  about sizes in a trained model, and which way is better there has to be measured there. That the tests hold their
  level rests on permutations, not on the model.
- Categories are unpaired, and differ in nothing else. Paired prompts, of which this engine makes use, would find
  smaller differences.
- comgra ranks and tests nothing by itself: its figures are ranked here by the effect sizes and tests of this package.
  The row says what its figures hold, not what its users see.
- The t test and the probe see means over tokens. A probe of single tokens, or of a trained model's features, may do
  better; so may a t test that pools what it knows of neighbouring units.
- To be named as affected is not to be the cause: everything behind the planted place is affected as well."""
