"""Record a residual stream and run no further, with pyvene.

Documentation: https://stanfordnlp.github.io/pyvene/, "Wrap, intervene, and share"
Serves: llama, gpt2
Note: It has no way to stop; an exception out of the function ends the forward.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pyvene as pv
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int) -> Any:
    # --- operation
    class Stop(Exception):
        pass

    kept: list[Tensor] = []

    def stop(base: Tensor, source: Any) -> None:
        kept.append(base.clone())
        raise Stop

    site = {"layer": layer, "component": "block_output", "intervention": stop}
    with contextlib.suppress(Stop):
        pv.IntervenableModel(site, model=model)({"input_ids": ids})
    return kept[0]
