"""Differentiate a logit difference at a residual stream, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, "Wrap, intervene, and share"
Serves: llama, gpt2
Note: What it collects is off the graph; the gradient is that of a zero that is added.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    change = torch.zeros(*ids.shape, model.config.hidden_size, requires_grad=True)
    site = {"layer": layer, "component": "block_output", "intervention": lambda base, source: base + change}
    _, output = pv.IntervenableModel(site, model=model)({"input_ids": ids})
    logits = output.logits[0, -1]
    return torch.autograd.grad(logits[token] - logits[other], change)[0]
