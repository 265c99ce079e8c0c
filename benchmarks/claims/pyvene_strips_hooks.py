"""pyvene 0.1.8: one call removes every hook on the model, also those of others.

Claim: a call removes all forward hooks and forward pre-hooks of every module before and after it runs, whoever put them
there; the user's own probe, or another library's, is silent from then on.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros".
Right: remove what one has registered, by its handles. Through crosslens pyvene does.
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
    """Count what a hook of the user's sees before and after a call; `holds` where it is gone."""
    model, inputs = gpt2(), {"input_ids": torch.arange(1, 9)[None]}
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model(**inputs)
    before = len(seen)
    zeroed = pv.IntervenableModel(
        {"layer": 0, "component": "mlp_output", "intervention_type": pv.ZeroIntervention}, model=model
    )
    zeroed(base=inputs, unit_locations={"base": 3})
    seen.clear()
    model(**inputs)
    return {
        "claim": "one call removes the hooks of others",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"calls seen before": before, "calls seen after": len(seen)},
        "expected": {"calls seen before": before, "calls seen after": before},
        "holds": before == 1 and not seen,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
