"""pyvene 0.1.8: with `use_cache=False` a generation is not intervened on.

Claim: interventions of generated steps are told by the cache; without it `generate` gives the tokens of the plain
model.
Documentation followed: tutorial pyvene_101, "Advanced Intervention on LMs Generation (Model Steering)".
Right: `unit_locations=None, intervene_on_prompt=True`, or the cache. Through crosslens a cache makes no difference.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Steer with and without the cache; `holds` where the latter gives the plain tokens."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    torch.manual_seed(0)
    steer = 5 * torch.randn(32)
    model, _ = tiny_model("llama")
    plain = model.generate(**inputs, **options)[0, 8:].tolist()
    tokens = []
    for cache in (True, False):
        adding = pv.AdditionIntervention(source_representation=steer)
        steering = pv.IntervenableModel([{"component": "model.layers[1].output", "intervention": adding}], model=model)
        tokens.append(steering.generate(inputs, use_cache=cache, **options)[1][0, 8:].tolist())
    return {
        "claim": "without a cache a steered generation gives the plain tokens",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"tokens without the cache": tokens[1], "are the plain ones": tokens[1] == plain},
        "expected": {"tokens without the cache": tokens[0], "are the plain ones": False},
        "holds": tokens[1] == plain != tokens[0],
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
