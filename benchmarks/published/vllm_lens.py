"""vllm-lens' benchmark: its own published rows, for each position that was returned.

Nothing can be run here: OPT-30B on GPUs. But the arms of the benchmark did different work, and its table says how
much: the time of each is divided by the activations that it returned. Returned positions may hold padding, so this is
a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from .claim import Claim, Found, Kept, Scale, Source, short

NOTEBOOK = Source(
    "vllm-lens, benchmark",
    "github.com/UKGovernmentBEIS/vllm-lens, vllm_lens/_benchmarks/results.ipynb",
    "26fe976; OPT-30B, 1,000 prompts, one GPU, one run of each",
    "2026",
)


@dataclass(frozen=True)
class Run:
    """A row of the notebook: seconds of starting and of running, activation tensors, their mean length, batch size."""

    startup_s: float
    run_s: float
    vectors: int
    length: float
    batch: int | None = None

    @property
    def positions(self) -> float:
        """Positions that were returned."""
        return self.vectors * self.length


LENS = Run(33.107433, 274.039894, 1000, 328.125)
RUNS = {
    "hf": ("HF-Transformers", Run(40.007041, 2447.824302, 1000, 1021.536, 16)),
    "nnsight": ("nnsight-transformers", Run(0.173097, 5636.962116, 1024000, 1.019891, 16)),
    "transformer_lens": ("TransformerLens", Run(177.287079, 13268.134483, 1000, 1041.312, 8)),
    "nnsight_vllm": ("nnsight-vllm", Run(46.024251, 3218.199941, 1, 318545.0)),
}


def total(run: Run) -> float:
    """Its headline: the whole time to vllm-lens'."""
    return (run.startup_s + run.run_s) / (LENS.startup_s + LENS.run_s)


def running(run: Run) -> float:
    """Time of running to vllm-lens'."""
    return run.run_s / LENS.run_s


def for_each_position(run: Run) -> float:
    """The same, for each position that was returned."""
    return (run.run_s / run.positions) / (LENS.run_s / LENS.positions)


def _computed(run: Run, scale: Scale) -> Kept:
    return {"values": [for_each_position(run)], "facts": {"total": total(run), "running": running(run)}}


def _why(run: Run) -> Callable[[Found, Mapping[str, Found]], str]:
    def why(seen: Found, rows: Mapping[str, Found]) -> str:
        ratio = run.positions / LENS.positions
        batch = f", in batches of {run.batch}" if run.batch else ""
        return (
            f"Computed from its own table. This arm returned {run.positions:,.0f} positions{batch}, vllm-lens "
            f"{LENS.positions:,.0f}: {short(ratio)} times as many. Start-up included, as in the headline, the ratio is "
            f"{short(total(run))}."
        )

    return why


CLAIMS = tuple(
    Claim(
        f"vllm_lens.{key}", NOTEBOOK, f"{name} takes {running(run):.1f} times as long as vllm-lens",
        round(running(run), 1), "its published seconds, for each position returned", half=0.05, group="computed",
        measure=partial(_computed, run), why=_why(run), once=True,
    )
    for key, (name, run) in RUNS.items()
)  # fmt: skip
"""The rows of this source."""
