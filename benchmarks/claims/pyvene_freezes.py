"""pyvene 0.1.8: wrapping a model freezes all its parameters and ends its training mode, for good.

Claim: the constructor sets `requires_grad` to False on every parameter and calls `eval()`; nothing takes it back when
the wrapper is gone, so a training step after it has nothing to train.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros".
Right: the model as it was given. Through crosslens it is.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def gpt2() -> GPT2LMHeadModel:
    """Two random blocks."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def main() -> dict[str, Any]:
    """Wrap, use, delete the wrapper and look; `holds` where the model stays frozen and in evaluation mode."""
    model, inputs = gpt2().train(), {"input_ids": torch.arange(1, 9)[None]}
    before = _state(model)
    zeroed = pv.IntervenableModel(
        {"layer": 0, "component": "mlp_output", "intervention_type": pv.ZeroIntervention}, model=model
    )
    zeroed(base=inputs, unit_locations={"base": 3})
    del zeroed
    after = _state(model)
    return {
        "claim": "wrapping freezes the caller's parameters and leaves the model in evaluation mode",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": after,
        "expected": before,
        "holds": before["trainable parameters"] > 0 and not after["trainable parameters"] and not after["training"],
    }


def _state(model: GPT2LMHeadModel) -> dict[str, Any]:
    return {"trainable parameters": sum(p.requires_grad for p in model.parameters()), "training": model.training}


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
