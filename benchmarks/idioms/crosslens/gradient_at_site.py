"""Differentiate a logit difference at a residual stream, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, ids: Tensor, layer: int, token: int, other: int) -> Any:
    # --- operation
    site = f"blocks.{layer}.resid_post"
    with open_inspector("hooks", model) as lens:
        return lens.gradients(ids, [site], lambda logits: logits[:, -1, token] - logits[:, -1, other])[site]
