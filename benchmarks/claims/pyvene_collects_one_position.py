"""pyvene 0.1.8: collecting several positions gives the first position's features, cut into as many pieces.

Claim: `intervention_type=CollectIntervention` with 8 positions of a residual stream of 32 returns (1, 8, 4): the 32
features of the first position, and nothing of the other seven. No error.
Documentation followed: tutorial pyvene_101, "Activation Collection with Intervention", with a list of units as in "Get
Attention Weights".
Right: (1, 8, 32), as the model's own hidden state, and as `CollectIntervention(keep_last_dim=True)` gives.
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
    """Collect all positions behind block 0; `holds` where only the first is there."""
    model, inputs = gpt2(), {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        want = model(**inputs, output_hidden_states=True).hidden_states[1]
        collecting = pv.IntervenableModel(
            {"layer": 0, "component": "block_output", "intervention_type": pv.CollectIntervention}, model=model
        )
        positions = list(range(want.shape[1]))
        got = collecting(base=inputs, unit_locations={"base": [[positions]]})[0][-1][0]
    first = got.numel() == want.shape[-1] and bool(torch.allclose(got.flatten(), want[0, 0]))
    return {
        "claim": "collecting several positions returns the features of the first only",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "https://github.com/goodfire-ai/causalab/pull/17",
        "observed": {"shape": list(got.shape), "is the first position alone": first},
        "expected": {"shape": list(want.shape), "is the first position alone": False},
        "holds": first,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
