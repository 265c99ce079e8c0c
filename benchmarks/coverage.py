"""How often the intervals of the tables hold a ratio that is known, on simulated runs.

    python -m crosslens.benchmarks.coverage [--runs 2000] [--out PAGE.md]

A simulated process has a speed of its own for each call (lognormal), a clock that drifts while blocks are timed, and
samples with heavy tails; the true ratio is known. Beside the intervals of `estimate.py` stands the percentile bootstrap
over processes and samples. Nothing is timed: the same seed gives the same page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from .estimate import Estimate, median_ratio, over_tasks, quotient
from .program import check_page, keep, run_program

Draw = np.random.Generator
Processes = list[NDArray[np.float64]]

COUNTS = (1, 2, 3, 5, 10, 20)
TASKS = (3, 5, 10, 14)
TRUE = 1.1
BLOCKS = 12
_RESAMPLES = 500


@dataclass(frozen=True)
class Machine:
    """How simulated processes and samples vary.

    Args:
        processes: standard deviation of a process's own log-ratio.
        slow: share of processes that are 10 % slower in the step than others.
        samples: standard deviation of the logarithm of one sample.
        tail: share of samples that something else delays; by how much is Pareto distributed.
        drift: change of the clock's logarithm over a process's samples, the same for all calls.
    """

    processes: float = 0.02
    slow: float = 0.0
    samples: float = 0.01
    tail: float = 0.1
    drift: float = 0.2


MACHINES = {
    "processes differ by 2 %": Machine(),
    "by 2 %, a tenth of them 10 % slower": Machine(slow=0.1),
    "processes are alike": Machine(processes=0.0),
}


def simulate(draw: Draw, count: int, machine: Machine, ratio: float = TRUE) -> Processes:
    """For each of `count` processes the ratios of its blocks: step over bare, timed in either order."""
    found = []
    for _ in range(count):
        own = draw.normal(0.0, machine.processes) + (math.log(1.1) if draw.random() < machine.slow else 0.0)
        # (block, 2): the moment at which bare and step are timed
        moments = np.sort(draw.random((BLOCKS, 2)) + np.arange(BLOCKS)[:, None], axis=1) / BLOCKS
        moments = draw.permuted(moments, axis=1)
        noise = draw.normal(0.0, machine.samples, (BLOCKS, 2))
        delayed = draw.random((BLOCKS, 2)) < machine.tail
        noise += delayed * np.log1p(0.1 * draw.pareto(1.5, (BLOCKS, 2)))
        logs = machine.drift * moments + noise
        found.append(np.exp(math.log(ratio) + own + logs[:, 1] - logs[:, 0]))
    return found


def percentile(processes: Processes, draw: Draw) -> Estimate:
    """The interval that is not used: processes, then samples within each, are drawn again, and percentiles taken."""
    logs, count = np.log(np.stack(processes)), len(processes)
    chosen = draw.integers(count, size=(_RESAMPLES, count, 1))
    within = draw.integers(BLOCKS, size=(_RESAMPLES, count, BLOCKS))
    values = np.median(logs[chosen, within], axis=2).mean(axis=1)
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(*(float(np.exp(v)) for v in (np.median(logs, axis=1).mean(), low, high)))


def truth(machine: Machine) -> float:
    """The geometric mean over all processes of their ratio."""
    return float(TRUE * 1.1**machine.slow)


def share(runs: int, once: Callable[[], bool]) -> float:
    """How many of so many simulated runs are hits, 0 to 1."""
    return sum(once() for _ in range(runs)) / runs


def measure(runs: int, seed: int, counts: Sequence[int] = COUNTS, tasks: Sequence[int] = TASKS) -> dict[str, Any]:
    """The share of simulated runs in which each interval holds what is true."""
    draw = np.random.default_rng(seed)
    fewer = max(1, runs // 4)  # of what takes long

    def of_processes(machine: Machine, count: int) -> dict[str, float]:
        return {
            "used": share(runs, lambda: median_ratio(simulate(draw, count, machine)).covers(truth(machine))),
            "percentile": share(fewer, lambda: percentile(simulate(draw, count, machine), draw).covers(truth(machine))),
            "same_twice": share(
                runs, lambda: quotient(simulate(draw, count, machine), simulate(draw, count, machine)).covers(1.0)
            ),
        }

    def of_tasks(count: int, skewed: bool) -> float:
        # each task in three processes; overheads are spread evenly, or small for most and large for some
        def once() -> bool:
            spread = draw.exponential(0.3, count) if skewed else draw.normal(0.3, 0.3, count)
            runs = [simulate(draw, 3, Machine(), ratio=TRUE * math.exp(extra)) for extra in spread]
            return over_tasks([median_ratio(run).value for run in runs]).covers(TRUE * math.exp(0.3))

        return share(fewer, once)

    return {
        "runs": runs,
        "seed": seed,
        "blocks": BLOCKS,
        "ratio": TRUE,
        "machines": [
            {"name": name, **asdict(machine), "processes_counted": [
                {"count": count, **of_processes(machine, count)} for count in counts
            ]}
            for name, machine in MACHINES.items()
        ],
        "tasks": [{"count": n, "even": of_tasks(n, False), "skewed": of_tasks(n, True)} for n in tasks],
    }  # fmt: skip


def page(measured: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    error = 100 * math.sqrt(0.95 * 0.05 / measured["runs"])
    fewer = 100 * math.sqrt(0.95 * 0.05 / max(1, measured["runs"] // 4))
    lines = [
        "# Do the intervals hold what they promise?",
        "",
        f"Share of {measured['runs']} simulated runs in which a 95 % interval holds the true ratio, in %. Chance "
        f"alone moves a share of 95 % by {error:.1f} (standard error; {fewer:.1f} for the bootstrap and for tasks, "
        f"which have a quarter of the runs). A process has {measured['blocks']} blocks, samples with heavy tails and "
        "a clock that drifts by 20 %.",
        "",
        "- *tables*: the interval of the tables. Of one process it covers that process's own ratio alone, which is why "
        "it misses the ratio over processes wherever they differ.",
        "- *bootstrap*: percentiles over processes and samples, the common choice.",
        "- *A/A*: how often the interval of the same backend under two names holds 1.",
        "",
        "| processes of the simulated machine | how many | tables | bootstrap | A/A |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for machine in measured["machines"]:
        for row in machine["processes_counted"]:
            shares = " | ".join(f"{100 * row[key]:.1f}" for key in ("used", "percentile", "same_twice"))
            lines.append(f"| {machine['name']} | {row['count']} | {shares} |")
    lines += [
        "",
        "The geometric mean over tasks, of which a run has some of many; what tasks cost is spread evenly about its "
        "middle, or small for most and large for some:",
        "",
        "| tasks | even | skewed |",
        "| --: | --: | --: |",
    ]
    lines += [f"| {row['count']} | {100 * row['even']:.1f} | {100 * row['skewed']:.1f} |" for row in measured["tasks"]]
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[
        Path | None, typer.Option(help="A .md file for the page, .json beside it for what was measured; else printed.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Simulated runs for each figure.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
) -> None:
    """How often the intervals of the tables hold a ratio that is known, on simulated runs."""
    check_page(out)
    measured = measure(runs, seed)
    keep(out, json.dumps(measured, indent=1) + "\n", page(measured))


if __name__ == "__main__":
    run_program(main)
