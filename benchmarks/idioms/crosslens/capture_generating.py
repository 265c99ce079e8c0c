"""Record a residual stream while tokens are generated, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    site = f"blocks.{layer}.resid_post"
    with open_inspector("hooks", model) as lens:
        return lens.generate(ids, max_new_tokens=new_tokens, capture=[site])[site]
