"""Record the hidden layer of a network of one's own, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, "Wrap, intervene, and share"
Serves: llama, gpt2
Note: The network must have an attribute config.
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, images: Tensor) -> Any:
    model.config = None
    # --- operation
    site = {"component": "hidden.output", "intervention": pv.CollectIntervention()}
    (_, (hidden,)), _ = pv.IntervenableModel(site, model=model)({"images": images})
    return hidden
