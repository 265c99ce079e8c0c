"""pyvene 0.1.8 with transformers 5: after one call `output_hidden_states=True` returns nothing.

Claim: transformers 5 collects hidden states and attentions with hooks that it installs once; pyvene removes them with
all others, and from then on the model returns empty tuples, without an error.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros"; transformers' own `output_hidden_states=True`.
Right: one hidden state for the embedding and one for each block, before and after.
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
    """Ask for hidden states before and after a call; `holds` where they are gone."""
    model, inputs = gpt2(), {"input_ids": torch.arange(1, 9)[None]}
    before = len(model(**inputs, output_hidden_states=True).hidden_states)
    zeroed = pv.IntervenableModel(
        {"layer": 0, "component": "mlp_output", "intervention_type": pv.ZeroIntervention}, model=model
    )
    zeroed(base=inputs, unit_locations={"base": 3})
    after = len(model(**inputs, output_hidden_states=True).hidden_states or ())
    return {
        "claim": "after one call the model returns no hidden states when asked for them",
        "library": "pyvene",
        "version": f"{version('pyvene')} with transformers {version('transformers')}",
        "upstream": "not found upstream",
        "observed": {"before": before, "after": after},
        "expected": {"before": model.config.n_layer + 1, "after": model.config.n_layer + 1},
        "holds": before == model.config.n_layer + 1 and after == 0,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
