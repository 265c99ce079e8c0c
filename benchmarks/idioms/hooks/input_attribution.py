"""Embedding times gradient, in PyTorch alone.

Documentation: https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(model: Any, ids: Tensor, token: int) -> Any:
    # --- operation
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    logit = model(inputs_embeds=embeds).logits[0, -1, token]
    (gradient,) = torch.autograd.grad(logit, embeds)
    return (embeds * gradient).sum(-1)[0]
