"""Zero one neuron, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector, zero


def run(model: Any, ids: Tensor, layer: int, neuron: int) -> Any:
    # --- operation
    with open_inspector("hooks", model) as lens:
        return lens.run(ids, edits=[zero(f"blocks.{layer}.mlp.post", units=[neuron])]).logits
