"""How well methods name the places of differences that were planted, and how often they name one where there is none.

    python -m crosslens.benchmarks.known_truth --out known_truth.md

In one of two categories of examples, or of training steps, a difference of known kind, place and size is planted
(`tasks.planting`). Truth: of the ranked places, those at which it is planted or that are computed from it; all others
hold the same in both categories, but for chance. Without a plant there is no truth to find, and whatever is declared is
false. `known_truth_runs` says what runs, `known_truth_ways` who looks.

Beside NAME.md go NAME.jsonl, one finished cell a line, of which a later call makes use, and NAME.csv, the averages.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score
from threadpoolctl import threadpool_limits

from crosslens.adapters import InputError
from crosslens.tasks.planting import GRADIENT_KINDS

from .environment import environment
from .known_truth_runs import Forward, Training
from .known_truth_tables import as_table, write
from .known_truth_ways import LEVEL, WAYS, Found, Labels, found_by_all
from .program import check_page, run_program
from .store import to_json

FORMAT = 1
BLOCK = "blocks.1.resid_post"
PLACES: dict[str, tuple[str, tuple[float, ...]]] = {
    "mean": (BLOCK, (0.1, 0.2, 0.4, 0.8)),
    "variance": (BLOCK, (0.1, 0.2, 0.4, 0.8)),
    "tail": (BLOCK, (0.5, 1.0, 2.0, 4.0)),
    "dead": ("blocks.1.mlp.post", (0.05, 0.1, 0.2, 0.4)),
    "direction": (BLOCK, (0.2, 0.4, 0.8, 1.6)),
    "attention": ("blocks.1.attn.pattern", (0.1, 0.2, 0.4, 0.8)),
    "nan": ("blocks.1.mlp.post", (0.0125, 0.2)),
    "exploding": (BLOCK, (0.05, 0.1, 0.2, 0.4)),
    "vanishing": (BLOCK, (0.05, 0.1, 0.2, 0.4)),
}
"""Kind of difference -> where it is planted, and how large; units as of `planting.KINDS`."""
COUNTS = (8, 16, 32)
"""Examples, or training steps, of each category."""
FIRST, FIRST_NULL = 100, 10_000
"""First seeds, of planted differences and of none. Those below 100 served to choose the sizes."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        kind: of `PLACES`, or "forward" or "training" where nothing is planted.
        size: of the difference; 0 for nothing.
        seed: of the model, the texts, and all that is drawn.
    """

    kind: str
    size: float
    seed: int

    @property
    def world(self) -> type[Forward] | type[Training]:
        """What is run."""
        return Training if self.kind in (*GRADIENT_KINDS, "training") else Forward

    def run(self, world: Forward | Training) -> dict[str, list[dict[str, float]]]:
        """By way: `judged` at each of the world's counts."""
        place, _ = PLACES.get(self.kind, ("", ()))
        truth = world.truth(place) if place else np.zeros(len(world.places), dtype=np.bool_)
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for seen in world.observe(self.kind if place else "", place, self.size):
            for way, found in found_by_all(seen, world.permutations, self.seed).items():
                rows[way].append(judged(found, truth))
        return rows


def cells(seeds: int, nulls: int, training_nulls: int) -> list[Cell]:
    """All runs, seed by seed, with their share of those without a difference behind each."""
    found = []
    for seed in range(seeds):
        planted = [Cell(kind, size, FIRST + seed) for kind, (_, sizes) in PLACES.items() for size in sizes]
        found += sorted(planted, key=lambda cell: cell.world is Training)  # what a seed's runs share is made once
        for kind, count in (("forward", nulls), ("training", training_nulls)):
            share = range(seed * count // seeds, (seed + 1) * count // seeds)
            found += [Cell(kind, 0.0, FIRST_NULL + each) for each in share]
    return found


def judged(found: Found, truth: Labels) -> dict[str, float]:
    """What a way found against the truth, (place,) in the order of execution; also where nothing is planted.

    auroc, ap: area under the ROC curve and average precision of the ranking; places of one rank count half. Absent
        where nothing is planted.
    first: whether the first place that is declared is the first that is affected.
    power: share of affected places that are declared.
    false: whether one that is not affected is declared.
    fdp: false discovery proportion, the share of the declared that are not affected; 0 where none is declared.
    """
    declared = found.declared
    wrong = declared & ~truth
    row = {"false": float(wrong.any()), "fdp": float(wrong.sum() / max(1, declared.sum()))}
    if not truth.any():
        return row
    order = stats.rankdata(found.scores)
    return {
        "auroc": round(float(roc_auc_score(truth, order)), 4),
        "ap": round(float(average_precision_score(truth, order)), 4),
        "first": float(declared.any() and np.argmax(declared) == np.argmax(truth)),
        "power": round(float(declared[truth].mean()), 4),
        **row,
    }


class Cells:
    """A file of finished cells, one a line, behind a line that says of what.

    Args:
        path: read if it exists, else made.
        settings: what must be the same for a cell to be used again.
        facts: what else its first line is to say.

    Raises:
        InputError: it cannot be read or written, is damaged before its last line, or is of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[Cell, dict[str, Any]] = {}
        try:
            if path.exists():
                self._read(json.loads(to_json(settings)))
            else:
                self.facts = json.loads(to_json({"settings": settings, **facts}))
                path.parent.mkdir(parents=True, exist_ok=True)
                self._append(self.facts, "xb")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be used: {error}") from error

    def _read(self, settings: Mapping[str, Any]) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode().splitlines(), start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    self.facts = record
                    theirs = record["settings"]
                else:
                    self.done[Cell(record["kind"], record["size"], record["seed"])] = record
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}, line {number}, is no cell of this benchmark: {error!r}") from error
        if not whole:
            raise InputError(f"{self.path} holds no cells; delete it")
        if differing := [name for name in settings if theirs.get(name) != settings[name]]:
            raise InputError(
                f"{self.path} holds cells of other settings ({differing[0]}: {theirs.get(differing[0])}, not "
                f"{settings[differing[0]]}); give another --out, or delete it"
            )
        if len(whole) < len(raw):  # a line that was being written when the program was stopped
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Keep a finished cell.

        Raises:
            InputError: it cannot be written; what was there is kept.
        """
        self.done[cell] = {**asdict(cell), **record}
        try:
            self._append(self.done[cell], "ab")
        except OSError as error:
            raise InputError(f"cannot go on writing to {self.path}: {error}; what is there is kept") from error

    def _append(self, record: Mapping[str, Any], mode: str) -> None:
        with self.path.open(mode) as file:
            file.write(f"{to_json(record)}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def settings(permutations: int) -> dict[str, Any]:
    """What a cell depends on, beside itself."""
    return {
        "format": FORMAT, "permutations": permutations, "counts": COUNTS, "level": LEVEL, "ways": list(WAYS),
        "places": PLACES,
    }  # fmt: skip


def run(wanted: Sequence[Cell], kept: Cells, permutations: int, console: Console) -> None:
    """Run the cells that are not kept yet, on one core, with a progress bar."""
    torch.set_num_threads(1)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    left = [cell for cell in wanted if cell not in kept.done]
    with threadpool_limits(1), ExitStack() as stack, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("cells", total=len(left))
        world: Forward | Training | None = None
        for cell in left:
            bar.update(task, description=f"{cell.kind} {cell.size:g}, seed {cell.seed}")
            began = time.process_time()
            if world is None or type(world) is not cell.world or world.seed != cell.seed:
                stack.close()
                world = stack.enter_context(closing(cell.world(cell.seed, COUNTS, permutations)))
            found = cell.run(world)
            spent = round(time.process_time() - began, 3)
            kept.add(cell, {"cpu_s": spent, "n": list(COUNTS), "found": _columns(found)})
            bar.advance(task)


def _columns(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """By way and figure, the values at each count."""
    return {way: {name: [row[name] for row in rows] for name in rows[0]} for way, rows in found.items()}


def main(
    out: Annotated[Path, typer.Option(help="Markdown file; the cells and averages go beside it.")],
    seeds: Annotated[int, typer.Option(min=2, help="Models and corpora for each planted difference.")] = 10,
    nulls: Annotated[int, typer.Option(min=1, help="Forward runs without a difference.")] = 400,
    training_nulls: Annotated[int, typer.Option(min=1, help="Training runs without a difference.")] = 100,
    permutations: Annotated[int, typer.Option(min=199, help="Relabellings of each test.")] = 200,
    figure: Annotated[Path | None, typer.Option(help="File for the power curves, such as power.pdf.")] = None,
) -> None:
    """Plant differences, ask every way where they are, and write what came of it; goes on with what --out holds."""
    check_page(out)
    wanted = cells(seeds, nulls, training_nulls)
    kept = Cells(out.with_suffix(".jsonl"), settings(permutations), {"environment": environment(["scikit-learn"])})
    run(wanted, kept, permutations, Console(stderr=True))
    table = as_table([kept.done[cell] for cell in wanted])
    write(out, table, kept.facts)
    if figure is not None:
        from .known_truth_plots import save_power

        save_power(table, figure)


if __name__ == "__main__":
    run_program(main)
