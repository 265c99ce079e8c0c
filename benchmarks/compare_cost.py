"""What `compare` costs beside the bare forwards, and how its memory grows with the corpus.

python -m crosslens.benchmarks.compare_cost            # 200 stories on SmolLM2-135M
python -m crosslens.benchmarks.compare_cost --memory   # 1,000 to 30,000 examples on a tiny model
"""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer

from crosslens.adapters import open_inspector
from crosslens.tasks import compare, load_model
from crosslens.tasks.data import read_stories

from .estimate import median_ratio
from .timing import no_garbage_collection, seconds

BATCH = 16


def main(
    rounds: Annotated[int, typer.Option(help="Rounds; each makes all forwards bare, and compares once.")] = 3,
    memory: Annotated[bool, typer.Option("--memory", help="Measure the growth of memory instead.")] = False,
    examples: Annotated[int, typer.Option(help="(of a worker) so many examples.", hidden=True)] = 0,
) -> None:
    """Measure, and print."""
    torch.set_num_threads(1)
    if examples:
        print(_peak(examples))
    elif memory:
        for number in (1_000, 10_000, 30_000):
            command = [sys.executable, "-m", "crosslens.benchmarks.compare_cost", "--examples", str(number)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{number:7,} examples: {int(done.stdout):,} bytes of peak resident memory")
    else:
        _time(rounds)


def _time(rounds: int) -> None:
    model, tokenizer = load_model("smollm2-135m")
    stories = read_stories()[["text", "category", "pair"]].head(200)
    kinds = ("resid_pre", "resid_mid", "resid_post", "attn.out", "attn.z", "mlp.post", "mlp.out")
    rows = sorted((list(tokenizer(text)["input_ids"]) for text in stories["text"]), key=len)
    batches = [_padded(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    with open_inspector("hooks", model, tokenizer) as lens:

        def ours() -> None:
            compare(lens, stories, sites=[f"blocks.*.{kind}" for kind in kinds], batch_size=BATCH)

        ours()  # compiles the kernels
        samples: dict[str, list[float]] = {"bare": [], "compare": []}
        ways = [("bare", bare), ("compare", ours)]
        with no_garbage_collection():
            for round_ in range(rounds):
                random.Random(round_).shuffle(ways)
                for name, way in ways:
                    samples[name].append(seconds(way, 1))
    bare_s, ours_s = (np.array(samples[name]) for name in ("bare", "compare"))
    ratio = median_ratio([ours_s / bare_s])
    print(f"{len(stories)} stories, {len(kinds)} kinds of site x 30 blocks, one thread, {rounds} rounds")
    print(f"bare {np.median(bare_s):.2f} s, compare {np.median(ours_s):.2f} s")
    print(f"ratio {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]")


def _padded(rows: list[list[int]]) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _peak(examples: int) -> int:
    """Peak resident memory of a process that compares so many examples from an iterator."""
    model, tokenizer = load_model("tiny-llama")
    peak = 0

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, psutil.Process().memory_info().rss)

    source = ({"text": f"{i} and {i * 7 % 1000}", "category": "ab"[i % 2]} for i in range(examples))
    with open_inspector("hooks", model, tokenizer) as lens:
        compare(lens, source, sites="blocks.*.resid_post", batch_size=64, progress=watch)
    return peak


if __name__ == "__main__":
    typer.run(main)
