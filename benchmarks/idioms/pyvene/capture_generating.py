"""Record a residual stream while tokens are generated, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, tutorial pyvene_101, "LMs Generation"; tutorial pyvene_101,
"Activation Collection with Intervention"
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    site = {"layer": layer, "component": "block_output", "intervention": pv.CollectIntervention()}
    (_, residuals), _ = pv.IntervenableModel(site, model=model).generate(
        {"input_ids": ids}, unit_locations=None, intervene_on_prompt=True, max_new_tokens=new_tokens, do_sample=False
    )
    return torch.cat(residuals, dim=1)
