"""What `compare` costs beside the bare forwards, and how its memory grows with the corpus."""

from __future__ import annotations

from typing import Any

import torch

from crosslens.adapters import open_inspector
from crosslens.benchmarks.memory import PeakMemory
from crosslens.tasks import compare, load_model
from crosslens.tasks.data import read_stories

from .turns import WaysDifferError, calls, in_turns

KINDS = "resid_pre resid_mid resid_post attn.q attn.k attn.v attn.z attn.out mlp.post mlp.out".split()  # noqa: SIM905
"""Of site: all but patterns."""
BATCH = 16
_MEMORY_BATCH = 128


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of all forwards bare, of the same with every site watched, and of `compare`.

    Args:
        job: model, texts (stories that are compared), rounds, repeat.

    Returns:
        texts, tokens (of the shortest and the longest), kinds, blocks, and samples: way -> seconds a corpus.
    """
    model, tokenizer = load_model(job["model"])
    stories = read_stories()[["text", "category", "pair"]].head(job["texts"])
    rows = sorted((list(tokenizer(text)["input_ids"]) for text in stories["text"]), key=len)
    batches = [_padded(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    sites = [f"blocks.*.{kind}" for kind in KINDS]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch, use_cache=False)

    with open_inspector("hooks", model, tokenizer) as lens:

        def watched() -> None:
            for batch in batches:
                lens.watch(batch, sites, lambda site, tensor: None)

        ways = {
            "bare": calls(bare),
            "watched": calls(watched),
            "compare": calls(lambda: compare(lens, stories, sites=sites, batch_size=BATCH)),
        }
        compare(lens, stories.head(BATCH), sites=sites, batch_size=BATCH)  # compiles the kernels
        with torch.no_grad():
            model(**batches[-1], use_cache=False)
        samples = in_turns(ways, job["rounds"], job["repeat"])
        blocks = lens.architecture.sizes["n_layers"]
    return {
        "texts": len(rows), "tokens": [len(rows[0]), len(rows[-1])], "kinds": len(KINDS), "blocks": blocks,
        "samples": samples,
    }  # fmt: skip


def measure_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak resident memory of this process, which compares so many examples that an iterator gives.

    Args:
        job: model, examples.

    Returns:
        examples, bytes.

    Raises:
        WaysDifferError: not all examples were compared.
    """
    model, tokenizer = load_model(job["model"])
    number = job["examples"]
    source = ({"text": f"{i} and {i * 7 % 1000}", "category": "ab"[i % 2]} for i in range(number))
    peak = PeakMemory()
    with open_inspector("hooks", model, tokenizer) as lens:
        found = compare(lens, source, sites="blocks.*.resid_post", directions="embed", batch_size=_MEMORY_BATCH)
    if found.n != number:
        raise WaysDifferError(f"{found.n} examples were compared, not {number}")
    return {"examples": number, "bytes": peak.whole()}


def _padded(rows: list[list[int]]) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}
