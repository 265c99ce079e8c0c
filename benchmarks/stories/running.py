"""Run the programs, each in a process of its own, and keep what they printed and what they found.

`python -m crosslens.benchmarks.stories.running PROGRAM` runs one here, and prints it all as one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from crosslens.adapters import InputError

from ..store import to_json

PROGRAMS = Path(__file__).resolve().parents[2] / "examples"
LEVEL = 0.05
"""Family-wise, of max-T p values, for what is counted as shown."""

_COLUMNS = ["site", "kpi", "a", "b", "g", "g_low", "g_high", "p_maxt"]


def _swap(left: Mapping[str, Any]) -> dict[str, Any]:
    """By backend, the answer and the logit difference of the corrupt and the patched run."""
    return {"site": left["site"], "clean": left["clean"], "corrupt": left["corrupt"], "answers": left["found"]}


def _kinds(left: Mapping[str, Any]) -> dict[str, Any]:
    """The design, the ranking, and at every site the largest |g| of its contrasts and whether one is shown."""
    table, stories = left["contrasts"], left["stories"]
    table = table[table["g"].notna()]
    table = table.assign(size=table["g"].abs())
    sites = table.sort_values("size", kind="stable").drop_duplicates("site", keep="last").sort_index()
    shown = table[table["p_maxt"] <= LEVEL]["site"].unique()
    pair = left["ranking"](table).iloc[0]
    return {
        "examples": len(stories),
        "items": int(stories["pair"].nunique()),
        "categories": stories["category"].value_counts(sort=False).to_dict(),
        "figures": int(table.drop_duplicates(["site", "kpi"]).shape[0]),
        "contrasts": len(table),
        "shown": int((table["p_maxt"] <= LEVEL).sum()),
        "first": _records(pd.DataFrame([pair])),
        "ranking": _records(left["found"]),
        "sites": [
            {"site": row["site"], "g": row["g"], "kpi": row["kpi"], "shown": row["site"] in shown}
            for row in sites.to_dict("records")
        ],
    }


def _sick(left: Mapping[str, Any]) -> dict[str, Any]:
    """Contrasts of activations over all steps, and the sd of every layer's output by worker and hundred of steps."""
    found = left["found"]
    table = left["recorder"].table(["activation"])
    table = table[table["kpi"] == "sd"].assign(hundred=lambda rows: rows["step"] // 100 * 100)
    means = table.groupby(["site", "hundred", "category"], sort=False)["value"].mean().unstack("category")
    grid = (means["b"] / means["a"]).unstack("hundred")
    return {
        "steps": left["STEPS"],
        "from": left["SICK_FROM"],
        "layer": left["SICK_LAYER"],
        "first": left["first"],
        "differ": len(left["differ"]),
        "figures": len(found),
        "strongest": _records(left["strongest"].sort_values("site")),
        "grid": {
            "sites": [str(site) for site in grid.index],
            "steps": [int(step) for step in grid.columns],
            "ratios": [[float(value) for value in row] for row in grid.to_numpy()],
        },
        "losses": {str(key): float(value) for key, value in left["losses"].items()},
    }


FINDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "swap_backend": _swap,
    "two_kinds": _kinds,
    "sick_training": _sick,
}
"""Program -> what of its variables is kept."""


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): row[key] for key in _COLUMNS if key in row} for row in table.to_dict("records")]


def here(name: str) -> dict[str, Any]:
    """Run a program in this process.

    Returns:
        program, output: texts. found: of `FINDS`. seconds: wall time.
    """
    path = PROGRAMS / f"{name}.py"
    began, printed = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        left = runpy.run_path(str(path), run_name="__main__")
    seconds = round(time.perf_counter() - began, 1)
    found = FINDS[name](left)
    return {
        "program": path.read_text(encoding="utf-8"), "output": printed.getvalue(), "found": found, "seconds": seconds,
    }  # fmt: skip


def of(name: str, limit: float = 1800.0) -> dict[str, Any]:
    """Run a program in a process of its own, with one thread.

    Raises:
        InputError: this is no checkout, so that the program is not there; or the program failed, with its last line.
    """
    if not (PROGRAMS / f"{name}.py").is_file():
        raise InputError(f"there is no {PROGRAMS / name}.py; the stories are told from a checkout of crosslens")
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise InputError(f"examples/{name}.py took more than {limit:.0f} s") from None
    line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not line.startswith("{"):
        last = done.stderr.strip().rpartition("\n")[2]
        raise InputError(f"examples/{name}.py ended with {done.returncode}: {last}")
    kept: dict[str, Any] = json.loads(line)
    return kept


if __name__ == "__main__":
    print(to_json(here(sys.argv[1])))
