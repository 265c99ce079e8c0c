"""Record the hidden layer of a network of one's own, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/getting_started.html
Serves: llama, gpt2
Raises: It takes models of transformers whose architecture it knows; for others its HookedRootModule wants
HookPoints written into the network's own source.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, images: Tensor) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, device="cpu")
    # --- operation
    _, cache = bridge.run_with_cache(images)
    return cache["hidden.hook_out"]
