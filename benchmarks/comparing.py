"""`crosslens compare`: a categorised comparison of the user's own prompts, on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosslens.adapters import InputError, load_backend, open_inspector
from crosslens.tasks import Comparison, compare, load_model
from crosslens.tasks.compare_shards import compare_on_ray
from crosslens.tasks.examples import Corpus
from crosslens.tasks.statistics import ranking

from .executors import EXECUTORS
from .plan import known
from .store import to_json

DEFAULT_SITES = ("blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out", "blocks.*.mlp.post")
TOP = 10
_COLUMNS = ("site", "kpi", "a", "b", "mean_a", "mean_b", "g", "g_low", "g_high", "p_maxt", "q_by")
_DIRECTIONS = ("site", "auroc", "auroc_low", "auroc_high", "p", "q_by")


@dataclass(frozen=True)
class Found:
    """What is shown and written of a comparison.

    Args:
        tested: the ranking, without what has no test.
        directions: None where no vectors were kept.
    """

    result: Comparison
    contrasts: pd.DataFrame
    ranking: pd.DataFrame
    tested: pd.DataFrame
    directions: pd.DataFrame | None

    @classmethod
    def of(cls, result: Comparison, permutations: int) -> Found:
        contrasts = result.contrasts(permutations=permutations)
        ranked = ranking(contrasts).drop(columns="feature")
        directions = result.directions() if result.facts.directions else None
        return cls(result, contrasts, ranked, ranked[ranked["tested"] != "none"], directions)


def compare_command(
    file: Path,
    *,
    model: str,
    backend: str,
    sites: Sequence[str],
    kpis: Sequence[str],
    categories: Sequence[str],
    text: str,
    pair: str | None,
    directions: Sequence[str],
    batch_size: int,
    max_tokens: int | None,
    out: Path,
    resume: bool,
    permutations: int,
    workers: int | None,
    executor: str | None,
    ray_address: str | None,
    as_json: bool,
) -> None:
    """Run, save, and print the strongest differences.

    Args:
        workers, executor, ray_address: replicas of the model on a Ray cluster, if any of them asks for that.

    Raises:
        CrosslensError: before any work where it can be known; what was finished is kept in `out`.
    """
    on_ray = known("executor", executor or "local", EXECUTORS) == "ray" or (executor is None and workers is not None)
    if not on_ray and (workers is not None or ray_address is not None):
        named = "--workers" if workers is not None else "--ray-address"
        raise InputError(f"{named} is of --executor ray; leave it out, or name that")
    load_backend(backend)
    corpus = Corpus(file, text=text, categories=list(categories) or "category", pair=pair)
    corpus.survey()  # before a model is fetched
    if out.exists() and not resume and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is not a folder that is new or empty; name another, or --resume what it holds")
    asked: dict[str, Any] = {
        "sites": list(sites) or list(DEFAULT_SITES), "kpis": list(kpis) or None, "directions": list(directions),
        "batch_size": batch_size, "max_tokens": max_tokens, "out": out, "resume": resume, "progress": True,
    }  # fmt: skip
    err = Console(stderr=True)
    try:
        if on_ray:
            result = compare_on_ray(model, backend, corpus, workers=workers, address=ray_address, **asked)
        else:
            network, tokenizer = load_model(model)
            with open_inspector(backend, network, tokenizer) as lens:
                result = compare(lens, corpus, model=model, **asked)
    except KeyboardInterrupt:
        _say(err, f"stopped: what was finished is kept in {out}; the same command with --resume goes on behind it")
        raise
    found = Found.of(result, permutations)
    files = _write(found, out)
    if as_json:
        print(to_json(_summary(found, out), indent=2))
    else:
        _print(found, files)


def _write(found: Found, out: Path) -> list[Path]:
    files = [out / "comparison.html", out / "table.csv", out / "contrasts.csv", out / "ranking.csv"]
    try:
        found.result.table.to_csv(files[1], index=False)
        found.contrasts.drop(columns="feature").to_csv(files[2], index=False)
        found.ranking.to_csv(files[3], index=False)
        if found.directions is not None:
            files.append(out / "directions.csv")
            found.directions.to_csv(files[4], index=False)
    except OSError as error:
        raise InputError(
            f"the tables cannot be written to {out}: {error}; the figures are kept, and the same command with --resume "
            "writes the tables from them"
        ) from error
    found.result.to_html(files[0], found.contrasts)
    return files


def _summary(found: Found, out: Path) -> dict[str, Any]:
    result = found.result
    summary = {
        "out": str(out), "examples": result.n, "categories": result.categories, "complete": result.complete,
        "contrasts": len(found.contrasts), "ranking": found.tested.head(TOP).to_dict("records"),
    }  # fmt: skip
    if found.directions is not None:
        summary["directions"] = found.directions.to_dict("records")
    return summary


def _print(found: Found, files: Sequence[Path]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=140)
    result = found.result
    _say(console, f"{result.n} examples: " + ", ".join(f"{name} {n}" for name, n in result.categories.items()))
    if len(result.categories) < 2:
        _say(console, "There is one category only: the table is there, and nothing to compare it with.", "yellow")
    elif not len(found.tested):
        why = found.contrasts["note"].value_counts().index[0]
        _say(console, f"No difference could be tested: {why}. The table is there.", "yellow")
    else:
        _print_ranking(console, found)
    if found.directions is not None and len(found.directions):
        console.print(Text("\nWhere the directions differ most:\n", style="bold"))
        console.print(_grid(found.directions.sort_values(["p", "auroc"], ascending=[True, False]), _DIRECTIONS, 1, 5))
        _say(console, "auroc: of held-out examples along the difference of means; p: direction or distribution.", "dim")
    _say(console, "\nEverything is in")
    for path in files:
        _say(console, f"  {path}")


def _print_ranking(console: Console, found: Found) -> None:
    ranked = found.tested
    of = f" of {len(found.ranking)}" if len(found.ranking) > TOP else ""
    console.print(Text(f"\nThe {min(TOP, len(ranked))} strongest differences{of}:\n", style="bold"))
    columns = [c for c in _COLUMNS if console.width >= 110 or not c.startswith("mean_")]
    console.print(_grid(ranked, columns, 4, TOP))
    kinds = set(ranked["tested"])
    how = (
        "in pairs" if kinds == {"paired"} else "unpaired" if kinds == {"unpaired"} else "in pairs where there are pairs"
    )
    _say(
        console,
        f"g: Hedges' g of a against b with its 95 % interval, {how}; p_maxt: permutation p, adjusted for all sites and "
        "KPIs; q_by: false discovery rate.",
        "dim",
    )
    if len(found.result.examples) < found.result.n:
        of_all = "paired" not in kinds
        kept = f"{len(found.result.examples)} kept examples"
        _say(console, f"p_maxt is of {kept}, g of all." if of_all else f"Paired tests are of {kept}.", "dim")


def _grid(frame: pd.DataFrame, columns: Sequence[str], words: int, most: int) -> Table:
    """The first rows; the first `words` columns are text."""
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < words else "right", no_wrap=True)
    for row in frame.head(most).to_dict("records"):
        cells = [row[c] if i < words else f"{row[c]:.3g}" for i, c in enumerate(columns)]
        grid.add_row(*(Text(str(cell)) for cell in cells))
    return grid


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style), soft_wrap=True)
