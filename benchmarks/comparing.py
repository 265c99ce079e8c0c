"""`crosslens compare`: a categorised comparison of the user's own prompts, on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from crosslens.adapters import InputError, load_backend, open_inspector
from crosslens.tasks import Comparison, compare, load_model

from .store import to_json

DEFAULT_SITES = ("blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out", "blocks.*.mlp.post")
TOP = 10
_COLUMNS = ("site", "kpi", "a", "b", "mean_a", "mean_b", "g", "g_low", "g_high", "p_maxt", "q_by")


def compare_command(
    file: Path,
    *,
    model: str,
    backend: str,
    sites: Sequence[str],
    kpis: Sequence[str],
    categories: Sequence[str],
    text: str,
    out: Path,
    resume: bool,
    permutations: int,
    as_json: bool,
) -> None:
    """Run, save, and print the strongest differences.

    Raises:
        CrosslensError: before any work where it can be known; what was finished is kept in `out`.
    """
    load_backend(backend)
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    network, tokenizer = load_model(model)
    err = Console(stderr=True)
    shown = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with open_inspector(backend, network, tokenizer) as lens, Progress(*shown, console=err, transient=True) as bar:
        task = bar.add_task("examples", total=None)
        result = compare(
            lens, file, sites=list(sites) or list(DEFAULT_SITES), kpis=list(kpis) or None, text=text,
            categories=list(categories) or ["category"], out=out, resume=resume, model=model,
            progress=lambda done, total: bar.update(task, completed=done, total=total or None),
        )  # fmt: skip
    ranking = result.ranking(permutations=permutations)
    page = result.to_html(out / "comparison.html", permutations=permutations)
    result.table.to_csv(out / "table.csv", index=False)
    ranking.drop(columns="feature").to_csv(out / "ranking.csv", index=False)
    if as_json:
        top = ranking.drop(columns="feature").head(TOP)
        print(to_json({"out": str(out), "examples": result.n, "ranking": top.to_dict("records")}, indent=2))
        return
    _print(result, ranking, out, page)


def _print(result: Comparison, ranking: pd.DataFrame, out: Path, page: Path) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=140)
    counts = result.table.groupby(result.facts.crossed, sort=False)["n"].max()
    console.print(Text(f"{result.n} examples: " + ", ".join(f"{name} {n}" for name, n in counts.items())))
    if not len(ranking):
        console.print(Text("There is one category only: the table is there, and nothing to compare it with.", "yellow"))
    else:
        grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        for column in _COLUMNS:
            grid.add_column(column, justify="left" if column in _COLUMNS[:4] else "right", no_wrap=True)
        for row in ranking.head(TOP).to_dict("records"):
            cells = [row[c] if c in _COLUMNS[:4] else f"{row[c]:.3g}" for c in _COLUMNS]
            grid.add_row(*(Text(str(cell)) for cell in cells))
        console.print(Text(f"\nThe {min(TOP, len(ranking))} strongest differences of {len(ranking)}:\n", style="bold"))
        console.print(grid)
        paired = ranking["tested"].eq("paired").any()
        console.print(Text(
            f"g: Hedges' g of a against b with its 95 % interval, {'in pairs' if paired else 'unpaired'}; p_maxt: "
            "permutation p, adjusted for all sites and KPIs; q_by: false discovery rate.", style="dim"
        ))  # fmt: skip
    console.print("\nEverything is in")
    for path in (page, out / "table.csv", out / "ranking.csv"):
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
