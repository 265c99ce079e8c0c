"""Record the hidden layer of a network of one's own, with torchlens.

Documentation: https://github.com/johnmarktaylor91/torchlens, README, "Quickstart"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import torchlens as tl
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    # --- operation
    return tl.trace(model, images)["hidden"].out
