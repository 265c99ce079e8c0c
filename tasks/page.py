"""A comparison as one self-contained page: heat map, distributions, ranking, training curves, examples.

The page is a pure function of the tables it is given. Nothing in it comes from the network, and no text of the caller's
is ever markup: the data lies in a JSON block in which `<` cannot occur, and the script only ever sets text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from crosslens.adapters.errors import InputError

STATISTICS = ("n", "mean", "sd", "min", "q05", "q25", "q50", "q75", "q95", "max", "missing")
"""Figures of one category at one site and KPI, over its examples; what a table lacks is shown as absent."""
CONTRAST = ("difference", "g", "g_low", "g_high", "auroc", "p_welch", "p_perm", "p_maxt", "q_bh", "q_by")
MOST_RANKED, MOST_EXAMPLES, MOST_CHARACTERS, MOST_POINTS = 2000, 200, 2000, 400
_LAYER = re.compile(r"(?<![\w])\d+(?!\w)")


def page(
    title: str,
    table: pd.DataFrame,
    contrasts: pd.DataFrame,
    ranking: pd.DataFrame,
    *,
    examples: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML.

    Args:
        title: its heading.
        table: columns site, kpi, category and any of `STATISTICS`.
        contrasts: columns site, kpi, a, b and any of `CONTRAST`; one row for each pair of categories.
        ranking: columns site, kpi, a, b and any of `CONTRAST`, strongest first; at most 2,000 rows are shown.
        examples: columns text and category; at most 200 are shown, each cut to 2,000 characters.
        curves: columns name, category, step, value: scalars over the steps of a training run.
        facts: what it takes to repeat the comparison, shown at the end.

    Raises:
        InputError: a table lacks a column that it must have.
    """
    from jinja2 import Environment, PackageLoader

    for name, frame, columns in (
        ("table", table, ("site", "kpi", "category")),
        ("contrasts", contrasts, ("site", "kpi", "a", "b")),
        ("ranking", ranking, ("site", "kpi", "a", "b")),
    ):
        if len(frame) and (lacking := [c for c in columns if c not in frame]):
            raise InputError(f"the page needs a {name} with column {lacking[0]!r}; it has {list(frame.columns)}")
    data = {
        "title": title,
        **_grid(table, contrasts),
        "ranking": _ranked(ranking),
        "examples": _examples(examples),
        "curves": _curves(curves),
        "facts": {
            str(k): v if isinstance(v, str | int | float) else json.dumps(v, default=str)
            for k, v in (facts or {}).items()
        },
    }
    environment = Environment(loader=PackageLoader("crosslens.tasks", "templates"), autoescape=True)
    return environment.get_template("comparison.html").render(title=title, data=to_script(data))


def to_script(data: Any) -> str:
    """JSON that can stand inside a script element, whatever texts it holds; NaN and infinities become null or text."""
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def split_layer(site: str) -> tuple[str, int | None]:
    """(kind, layer) of a site: `blocks.3.mlp.out` is (`blocks.*.mlp.out`, 3); without a number (site, None)."""
    match = _LAYER.search(site)
    if match is None:
        return site, None
    return f"{site[: match.start()]}*{site[match.end() :]}", int(match[0])


def _grid(table: pd.DataFrame, contrasts: pd.DataFrame) -> dict[str, Any]:
    """Sites, KPIs, categories and pairs by number, and the figures by these numbers."""
    sites = _distinct(table, "site")
    kpis = _distinct(table, "kpi")
    categories = _distinct(table, "category")
    pairs = (
        list(dict.fromkeys(zip(contrasts["a"].astype(str), contrasts["b"].astype(str), strict=True)))
        if len(contrasts)
        else []
    )
    own = [name for name in STATISTICS if name in table]
    between = [name for name in CONTRAST if name in contrasts]
    site_of, kpi_of = {s: i for i, s in enumerate(sites)}, {k: i for i, k in enumerate(kpis)}
    category_of, pair_of = {c: i for i, c in enumerate(categories)}, {p: i for i, p in enumerate(pairs)}
    cells: list[list[Any]] = [[None] * len(kpis) * len(categories) for _ in sites]
    for row in table.to_dict("records"):
        at = kpi_of[str(row["kpi"])] * len(categories) + category_of[str(row["category"])]
        cells[site_of[str(row["site"])]][at] = [row[name] for name in own]
    effects: list[list[Any]] = [[None] * len(kpis) * len(pairs) for _ in sites]
    for row in contrasts.to_dict("records"):
        pair = pair_of[str(row["a"]), str(row["b"])]
        at = kpi_of[str(row["kpi"])] * len(pairs) + pair
        effects[site_of[str(row["site"])]][at] = [row[name] for name in between]
    return {
        "sites": [[site, *split_layer(site)] for site in sites],
        "kpis": kpis,
        "categories": categories,
        "pairs": [list(pair) for pair in pairs],
        "statistics": own,
        "contrast": between,
        "cells": cells,
        "effects": effects,
    }


def _distinct(table: pd.DataFrame, column: str) -> list[str]:
    return [str(v) for v in pd.unique(table[column])] if len(table) else []


def _ranked(ranking: pd.DataFrame) -> dict[str, Any]:
    shown = ["site", "kpi", "a", "b", *(name for name in CONTRAST if name in ranking)]
    rows = ranking.head(MOST_RANKED)[shown].to_numpy(dtype=object).tolist() if len(ranking) else []
    return {"columns": shown, "rows": rows, "of": len(ranking)}


def _examples(examples: pd.DataFrame | None) -> dict[str, Any]:
    if examples is None or not len(examples):
        return {"rows": [], "of": 0}
    few = examples.groupby("category", sort=False).head(max(1, MOST_EXAMPLES // examples["category"].nunique()))
    rows = [[str(c), _cut(str(t))] for c, t in zip(few["category"], few["text"], strict=True)]
    return {"rows": rows[:MOST_EXAMPLES], "of": len(examples)}


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters)"


def _curves(curves: pd.DataFrame | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if curves is None or not len(curves):
        return found
    for (name, category), group in curves.groupby(["name", "category"], sort=False):
        group = group.sort_values("step")
        every = math.ceil(len(group) / MOST_POINTS)
        kept = group.iloc[::every]
        found.append({"name": str(name), "category": str(category), "every": every,
                      "steps": kept["step"].tolist(), "values": kept["value"].tolist()})  # fmt: skip
    return found


def _plain(value: Any) -> Any:
    """As JSON has it: numbers of four figures, null for NaN, text for infinities."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.4g}")
    return value if value is None or isinstance(value, bool | int | str) else str(value)
