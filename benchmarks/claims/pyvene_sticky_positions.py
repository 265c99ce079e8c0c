"""pyvene 0.1.8: what a call does depends on an earlier call of the same object.

Claim: a location given as one number switches the object to a fast path for good; a later call with a position for each
row then acts at the first row's position in every row. No error.
Documentation followed: tutorial pyvene_101, "Set Activations to Zeros" (`{"base": 3}`), and its nested lists, which
hold the locations of each row.
Right: the logits that a new object gives for the same call.
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
    """The same call on a new object and on one that was used; `holds` where the logits differ."""
    inputs = {"input_ids": torch.arange(1, 17).view(2, 8)}
    each_its_own = {"base": [[[2], [5]]]}  # position 2 of row 0, position 5 of row 1
    new, used = _zeroing(), _zeroing()
    with torch.no_grad():
        want = new(base=inputs, unit_locations=each_its_own)[1].logits
        used(base=inputs, unit_locations={"base": 3})
        got = used(base=inputs, unit_locations=each_its_own)[1].logits
    off = [float((a - b).abs().max()) for a, b in zip(got, want, strict=True)]
    return {
        "claim": "after a call with one location for all rows, a location for each row is not obeyed",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"logits of row 0 off by": off[0], "logits of row 1 off by": off[1]},
        "expected": {"logits of row 0 off by": 0.0, "logits of row 1 off by": 0.0},
        "holds": max(off) > 1e-3,
    }


def _zeroing() -> Any:
    sites = {"layer": 0, "component": "block_output", "intervention_type": pv.ZeroIntervention}
    return pv.IntervenableModel(sites, model=gpt2())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
