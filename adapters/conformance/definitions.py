"""Attention by its definition, in any family: what q and k, taken before they are turned, and v must give.

Only the rotation itself is the family's own function, of `transformers`; how heads lie, what they share, what is scaled
and capped, and which keys a query sees is written out here.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def pattern(model: Any, layer: int, q: Tensor, k: Tensor, *, causal: bool) -> Tensor:
    """Attention after softmax, of inputs without padding.

    Args:
        model: of `transformers`.
        layer: number of the block.
        q: (batch, pos, head, d_head), before rotary.
        k: (batch, pos, kv_head, d_head), before rotary.
        causal: whether a query sees only what comes before it.

    Returns:
        (batch, head, query, key)
    """
    config, columns = model.config, q.shape[1]
    queries, keys = q.transpose(1, 2), k.transpose(1, 2)
    rotary = next((part for name, part in model.named_modules() if name.endswith("rotary_emb")), None)
    if rotary is not None:
        turn = vars(sys.modules[type(model).__module__])["apply_rotary_pos_emb"]
        queries, keys = turn(queries, keys, *rotary(q, torch.arange(columns)[None]))
    scores = queries @ _shared(keys, queries.shape[1]).mT
    scores = scores / (getattr(config, "query_pre_attn_scalar", None) or q.shape[-1]) ** 0.5
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        scores = cap * torch.tanh(scores / cap)
    seen = torch.ones(columns, columns, dtype=torch.bool)
    if causal:
        seen = seen.tril()
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window and (kinds is None or kinds[layer] == "sliding_attention"):
        seen = seen.triu(1 - window)
    weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights


def mixed(weights: Tensor, v: Tensor) -> Tensor:
    """(batch, head, query, key) pattern and (batch, pos, kv_head, d_head) values -> (batch, pos, head, d_head)."""
    return (weights @ _shared(v.transpose(1, 2), weights.shape[1])).transpose(1, 2)


def _shared(tensor: Tensor, heads: int) -> Tensor:
    """(batch, kv_head, pos, d_head) -> (batch, head, pos, d_head): neighbouring heads read the same keys and values."""
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
