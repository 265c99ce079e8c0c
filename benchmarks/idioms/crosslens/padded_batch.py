"""Record a residual stream of a padded batch, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, ids: Tensor, mask: Tensor, layer: int) -> Any:
    # --- operation
    site = f"blocks.{layer}.resid_post"
    with open_inspector("hooks", model) as lens:
        return lens.run({"input_ids": ids, "attention_mask": mask}, capture=[site])[site]
