"""Patch the residual stream at one position, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector, replace


def run(model: Any, ids: Tensor, source: Tensor, layer: int, position: int) -> Any:
    # --- operation
    site = f"blocks.{layer}.resid_post"
    with open_inspector("hooks", model) as lens:
        value = lens.run(source, capture=[site])[site][:, [position]]
        return lens.run(ids, edits=[replace(site, value, positions=[position])]).logits
