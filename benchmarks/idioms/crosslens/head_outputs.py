"""Record what each head gives, with crosslens.

Documentation: crosslens README, "Swap the backend with one word" and "Sites and edits"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import open_inspector


def run(model: Any, ids: Tensor) -> Any:
    # --- operation
    with open_inspector("hooks", model) as lens:
        found = lens.run(ids, capture=["blocks.*.attn.z"])
    return torch.stack([found[site] for site in found])
