"""Record the hidden layer of a network of one's own, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, images: Tensor) -> Any:
    # --- operation
    site = "module:hidden:output"
    with open_inspector("hooks", model) as lens:
        return lens.run(images, capture=[site])[site]
