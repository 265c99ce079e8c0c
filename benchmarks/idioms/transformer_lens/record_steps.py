"""Record two kinds of training steps, with TransformerLens.

Documentation: https://transformerlensorg.github.io/TransformerLens/content/hook_system.html, "add_hook +
remove_all_hook_fns" and "Gradient intervention via backward hook"
Serves: llama, gpt2
Note: It has no recorder: the figures, the kinds and the loop are the user's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def run(model: Any, tokenizer: Any, batches: list[tuple[str, Tensor]], layer: int, learning_rate: float) -> Any:
    bridge = TransformerBridge.boot_transformers("local", hf_model=model, tokenizer=tokenizer, device="cpu")
    optimizer = torch.optim.SGD(bridge.parameters(), lr=learning_rate)
    # --- operation
    figures: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {}
    name = f"blocks.{layer}.hook_resid_post"
    forward = (name, lambda resid, hook: figures.append(resid.detach().mean()))
    backward = (name, lambda gradient, hook: figures.append(gradient.abs().max()))
    for kind, ids in batches:
        figures.clear()
        with bridge.hooks(fwd_hooks=[forward], bwd_hooks=[backward]):
            loss = bridge(ids, return_type="loss")
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        rows.setdefault(kind, []).append(torch.stack(figures))
    return torch.stack([torch.stack(rows[kind]).mean(0) for kind in sorted(rows)])
