"""Embedding times gradient, with crosslens.

Documentation: crosslens.adapters.attribution
Serves: llama, gpt2
Note: Through captum, for which crosslens puts embeddings and target together.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, ids: Tensor, token: int) -> Any:
    # --- operation
    with open_inspector("captum", model) as lens:
        return lens.attribute(ids, token, method="input_x_gradient").scores[0]
