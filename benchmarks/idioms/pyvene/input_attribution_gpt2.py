"""Embedding times gradient, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, "Wrap, intervene, and share"
Serves: gpt2
Note: It has no method of attribution; the gradient is that of a one that is multiplied with.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    # --- operation
    scale = torch.ones(*ids.shape, model.config.hidden_size, requires_grad=True)
    site = {"component": "transformer.wte.output", "intervention": lambda base, source: base * scale}
    _, output = pv.IntervenableModel(site, model=model)({"input_ids": ids})
    return torch.autograd.grad(output.logits[0, -1, token], scale)[0].sum(-1)[0]
