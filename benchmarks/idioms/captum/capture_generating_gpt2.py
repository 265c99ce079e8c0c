"""Record a residual stream while tokens are generated, with captum.

Documentation: https://captum.ai/api/layer.html, "Layer Activation"
Serves: gpt2
Wrong: It keeps one value of a layer, that of the last call; a second forward over what was generated would show the
rest.
"""

from __future__ import annotations

from typing import Any

from captum.attr import LayerActivation
from torch import Tensor


def run(model: Any, ids: Tensor, layer: int, new_tokens: int) -> Any:
    # --- operation
    def generate(ids: Tensor) -> Tensor:
        tokens: Tensor = model.generate(ids, max_new_tokens=new_tokens, do_sample=False)
        return tokens

    return LayerActivation(generate, model.transformer.h[layer]).attribute(ids)
