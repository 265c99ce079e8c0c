"""What ablation tasks share: which heads or neurons are found, as many others to compare with, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosslens.adapters import Edit

Array = NDArray[np.float64]
Chosen = NDArray[np.bool_]


def leading(scores: Array, least: int, most: int) -> Chosen:
    """The highest scores, `least` to `most` of them, cut where the gap to the next one is widest.

    A fixed number would let rounding decide between two scores that are nearly equal.

    Args:
        scores: (layer, unit).
        least, most: at least 1, and fewer than there are scores.

    Returns: (layer, unit), true at the highest.
    """
    falling = np.sort(scores, axis=None)[::-1]
    gaps = falling[least - 1 : most] - falling[least : most + 1]
    cut = falling[least - 1 + int(np.argmax(gaps))]
    return np.asarray(scores >= cut)


def others(chosen: Chosen, draw: int) -> Chosen:
    """As many other units, at random in the same layers; elsewhere too where a layer has not enough others.

    Args:
        chosen: (layer, unit), not more than half of all.
        draw: number of the draw; each is the same every time.
    """
    order = np.random.default_rng(draw).random(chosen.shape)
    order[chosen] = np.inf
    out = np.zeros_like(chosen)
    for layer, count in enumerate(chosen.sum(axis=1)):
        free = int((~chosen[layer]).sum())
        out[layer, np.argsort(order[layer])[: min(count, free)]] = True
    order[out] = np.inf
    missing = int(chosen.sum() - out.sum())
    out.reshape(-1)[np.argsort(order, axis=None)[:missing]] = True
    return out


def edits_at(chosen: Chosen, edit: Callable[[int, list[int]], Edit]) -> list[Edit]:
    """One edit in each layer that has chosen units: `edit(layer, units)`."""
    return [edit(layer, np.flatnonzero(units).tolist()) for layer, units in enumerate(chosen) if units.any()]


def losses(logits: Tensor, ids: Tensor) -> Iterator[Array]:
    """(pos - 1,) loss in nats of each token but the first, row by row: in float64 all rows at once would be large.

    Args:
        logits: (batch, pos, d_vocab).
        ids: (batch, pos) token ids.
    """
    for row, tokens in zip(logits, ids.to(logits.device), strict=True):
        known = torch.log_softmax(row[:-1].double(), dim=-1)
        yield -known.gather(1, tokens[1:, None])[:, 0].cpu().numpy()
