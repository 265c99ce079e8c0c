"""What `compare` costs beside the bare forwards, and how its memory grows with the corpus.

python -m crosslens.benchmarks.compare_cost            # 200 stories on SmolLM2-135M, all sites but patterns
python -m crosslens.benchmarks.compare_cost --memory   # 1,000, 10,000 and 100,000 examples on a tiny model
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
import typer

from crosslens.adapters import open_inspector
from crosslens.tasks import compare, load_model
from crosslens.tasks.data import read_stories

from .estimate import median_ratio
from .memory import PeakMemory
from .timing import no_garbage_collection

BATCH = 16
KINDS = "resid_pre resid_mid resid_post attn.q attn.k attn.v attn.z attn.out mlp.post mlp.out".split()  # noqa: SIM905
CORPORA = (1_000, 10_000, 100_000)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; each makes all forwards bare, and compares once.")] = 5,
    texts: Annotated[int, typer.Option(help="Stories that are compared.")] = 200,
    memory: Annotated[bool, typer.Option("--memory", help="Measure the growth of memory instead.")] = False,
    examples: Annotated[int, typer.Option(help="(of a worker) so many examples.", hidden=True)] = 0,
) -> None:
    """Measure, and print."""
    torch.set_num_threads(1)
    if examples:
        print(_peak(examples))
    elif memory:
        _memory()
    else:
        _time(rounds, texts)


def _time(rounds: int, texts: int) -> None:
    """Processor time, which another program on the machine adds less to than to the time on the clock."""
    model, tokenizer = load_model("smollm2-135m")
    stories = read_stories()[["text", "category", "pair"]].head(texts)
    rows = sorted((list(tokenizer(text)["input_ids"]) for text in stories["text"]), key=len)
    batches = [_padded(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    with open_inspector("hooks", model, tokenizer) as lens:

        def ours() -> None:
            compare(lens, stories, sites=[f"blocks.*.{kind}" for kind in KINDS], batch_size=BATCH)

        def watched() -> None:
            for batch in batches:
                lens.watch(batch, [f"blocks.*.{kind}" for kind in KINDS], lambda site, tensor: None)

        ours()  # compiles the kernels
        bare()
        samples: dict[str, list[float]] = {"bare": [], "watched": [], "compare": []}
        ways = [("bare", bare), ("watched", watched), ("compare", ours)]
        with no_garbage_collection():
            for round_ in range(rounds):
                random.Random(round_).shuffle(ways)
                for name, way in ways:
                    samples[name].append(_processor_seconds(way))
    print(f"{len(stories)} stories of {len(rows[0])} to {len(rows[-1])} tokens, {len(KINDS)} kinds of site x 30 blocks")
    for name in samples:
        ratio = median_ratio([np.array(samples[name]) / np.array(samples["bare"])])
        print(
            f"{name:8s} {np.median(samples[name]):6.2f} s of one processor, "
            f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] of bare ({rounds} rounds)"
        )


def _processor_seconds(way: Callable[[], None]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def _padded(rows: list[list[int]]) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _memory() -> None:
    for number in CORPORA:
        command = [sys.executable, "-m", "crosslens.benchmarks.compare_cost", "--examples", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{number:7,} examples: {int(done.stdout) / 2**20:7.1f} MiB of peak resident memory", flush=True)


def _peak(examples: int) -> int:
    """Peak resident memory of a process that compares so many examples from an iterator."""
    model, tokenizer = load_model("tiny-llama")
    source = ({"text": f"{i} and {i * 7 % 1000}", "category": "ab"[i % 2]} for i in range(examples))
    peak = PeakMemory()
    with open_inspector("hooks", model, tokenizer) as lens:
        found = compare(lens, source, sites="blocks.*.resid_post", directions="embed", batch_size=128)
    if found.n != examples:
        raise RuntimeError(f"{found.n} examples were compared, not {examples}")
    return peak.whole()


if __name__ == "__main__":
    typer.run(main)
