"""What most tasks do with a model and its tokenizer before a backend comes in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosslens.adapters import InputError
from crosslens.adapters.architectures import Architecture, describe
from crosslens.adapters.attention import eager_attention
from crosslens.adapters.inputs import model_mask
from crosslens.adapters.inputs import prepare as prepare_inputs

TIMED_TOKENS = 64
"""Of one timed call; a bare forward of so many takes SmolLM2 a quarter of a second on one core."""


@dataclass(frozen=True)
class Batch:
    """Texts that go through the model together.

    Attributes:
        rows: their numbers among all texts.
        inputs: `input_ids` and `attention_mask`, (batch, pos), padded on the right.
    """

    rows: list[int]
    inputs: dict[str, Tensor]

    def unpadded(self) -> list[Tensor]:
        """(pos,) token ids of each text."""
        pairs = zip(self.inputs["input_ids"], self.inputs["attention_mask"].bool(), strict=True)
        return [ids[real] for ids, real in pairs]


def architecture_for(task: str, model: nn.Module, tokenizer: Any, *, causal: bool = True) -> Architecture:
    """The model's sites, if the task can run on it.

    Args:
        causal: whether the task needs a model that predicts the next token.

    Raises:
        InputError: no tokenizer, a model without canonical sites, or one that is not causal.
    """
    if tokenizer is None:
        raise InputError(f"task {task!r} needs the model's tokenizer")
    architecture = describe(model)
    if architecture.family is None:
        raise InputError(f"task {task!r} needs a language model of a known family, not {type(model).__name__}")
    if causal and not architecture.family.causal:
        raise InputError(f"task {task!r} needs a model that predicts the next token, not {type(model).__name__}")
    return architecture


def site_names(architecture: Architecture, *local: str) -> list[str]:
    """Names of the sites called so in every block, in order of execution."""
    return [site.name for site in architecture.sites.canonical.values() if site.local in local]


def batches(ids: Sequence[Sequence[int]], tokenizer: Any, size: int) -> list[Batch]:
    """All texts, sorted by length, padded on the right.

    Args:
        ids: token ids of each text.
        size: texts in a batch, at most.
    """
    order = np.argsort([len(row) for row in ids], kind="stable").tolist()
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    return [_batch(order[i : i + size], ids, pad) for i in range(0, len(order), size)]


def _batch(rows: list[int], ids: Sequence[Sequence[int]], pad: int) -> Batch:
    width = max(len(ids[row]) for row in rows)
    tokens = [[*ids[row], *[pad] * (width - len(ids[row]))] for row in rows]
    mask = [[1] * len(ids[row]) + [0] * (width - len(ids[row])) for row in rows]
    return Batch(rows, {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)})


def timed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first rows of a batch: what one timed call runs, for a cell to have many calls in a few seconds.

    Args:
        batch: tensors of shape (batch, pos), as `Inspector.run` takes them.

    Returns:
        TIMED_TOKENS of them at most, padding included, but one row at least.
    """
    rows = max(1, TIMED_TOKENS // batch["input_ids"].shape[1])
    return {name: tensor[:rows] for name, tensor in batch.items()}


def middling(parts: Sequence[Batch]) -> dict[str, Tensor]:
    """What one timed call runs of texts sorted by length: some of middling length."""
    return timed(parts[len(parts) // 2].inputs)


def bare_forward(model: nn.Module, inputs: Any, *, eager: bool = False) -> Callable[[], Any]:
    """The forward that an Inspector makes of these inputs, without a library: no gradients, no cache.

    What an Inspector copies to the model's device in every call is copied in every call here.

    Args:
        inputs: as `Inspector.run` takes them.
        eager: with eager attention, as where patterns are read, which exist nowhere else.
    """
    architecture = describe(model)
    ready = prepare_inputs(model, inputs, None, language=True, vocab=architecture.sizes["d_vocab"], limit=None)
    kwargs = dict(ready.kwargs)
    if ready.mask is not None and (architecture.family is None or architecture.family.causal):
        kwargs["attention_mask"] = model_mask(ready.mask, ready.mask.shape[1], next(model.parameters()).dtype)
    there = next(model.parameters()).device
    given = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in kwargs.items()}

    def forward() -> Any:
        with torch.no_grad(), eager_attention(model) if eager else nullcontext():
            return model(**{name: x.to(there) if isinstance(x, Tensor) else x for name, x in given.items()})

    return forward


def dtype_of(model: nn.Module) -> str:
    """Such as `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def weights_digest(model: nn.Module) -> str:
    """Of names, shapes and a few elements of every parameter: other weights under one name are noticed."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and parameter.numel():
            some = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 8)]
            digest.update(some.double().cpu().numpy().tobytes())
    return digest.hexdigest()
