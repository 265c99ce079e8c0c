"""What is measured on, and the two ways to measure: paired times, and a check that what is timed is right."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from crosslens.adapters.shadow import Shadow
from crosslens.benchmarks.timing import Call, Sampling, time_blocks

from .claim import Kept, Scale

_MOST = 60
_FEWEST = 3


@cache
def gpt2(scale: Scale, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    """A Hugging Face GPT-2 small (12 layers, width 768, vocabulary 50,257) with seeded random weights, in eval mode.

    What a forward costs does not depend on the values of its weights.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    small = dict(n_layer=2, n_embd=32, n_head=2, vocab_size=211, n_positions=128) if scale.tiny else {}
    config = GPT2Config(**small, bos_token_id=0, eos_token_id=None, attn_implementation=attention)
    torch.manual_seed(scale.seed)
    return GPT2LMHeadModel(config).to(dtype).eval()


def tokens(model: Any, rows: int, length: int, seed: int) -> Tensor:
    """(rows, length) token ids."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, length), generator=draw)


def shadow(model: nn.Module) -> Any:
    """A copy of the tree of modules that shares the weights, for a library that rewires what it is given."""
    return Shadow(model).module


def paired(step: Call, bare: Call, scale: Scale, **facts: Any) -> Kept:
    """Seconds of `bare` and of `step`, one after the other in an order drawn for each pair."""
    sampling = Sampling(2 if scale.tiny else _FEWEST, 2 if scale.tiny else _MOST, 0.0 if scale.tiny else scale.seconds)
    timing = time_blocks({"bare": bare, "step": step}, sampling, seed=scale.seed)
    return {
        "samples": [[block["bare"], block["step"]] for block in timing.blocks],
        "calls": timing.calls,
        "warmups": timing.warmups,
        "facts": facts,
    }


def agree(got: Tensor, wanted: Tensor, what: str, relative: float = 1e-4) -> float:
    """Largest difference, relative to the largest value.

    Raises:
        ValueError: above `relative`, or of another shape: what is wrong has no time.
    """
    if got.shape != wanted.shape:
        raise ValueError(f"{what}: {tuple(got.shape)} where {tuple(wanted.shape)} is right")
    error = float((got - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-30))
    if not error <= relative:
        raise ValueError(f"{what}: wrong by {error:.1e} of the largest value")
    return error
