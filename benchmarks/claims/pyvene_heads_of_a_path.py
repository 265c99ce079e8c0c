"""pyvene 0.1.8: the unit `h` at a component given by its path acts on all heads.

Claim: heads are known of named components; at a path, location 0 of the unit `h` is the whole tensor, and location 1
an IndexError.
Documentation followed: documentation of `IntervenableConfig`: `component` may be a path, `unit` may be `h`.
Right: the component `head_attention_value_output`. Through crosslens `attn.z` has `heads=`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Zero head 0 of four by a path; `holds` where all are zero."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("llama")
    site = {"component": "model.layers[0].self_attn.o_proj.input", "unit": "h", "intervention": pv.ZeroIntervention()}

    def first_head(value: torch.Tensor) -> torch.Tensor:
        value[..., :8] = 0
        return value

    with torch.no_grad():
        got = pv.IntervenableModel([site], model=model)(base=inputs, unit_locations={"base": 0})[1].logits
        one = _right("model.layers.0.self_attn.o_proj", first_head, inputs)
        every = _right("model.layers.0.self_attn.o_proj", torch.zeros_like, inputs)
    return {
        "claim": "zeroing one head at a component given by its path zeroes all",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"off from head 0 zeroed": _off(got, one), "off from all heads zeroed": _off(got, every)},
        "expected": {"off from head 0 zeroed": 0.0, "off from all heads zeroed": _off(one, every)},
        "holds": _off(got, one) > 1e-3 and _off(got, every) == 0,
    }


def _right(module: str, change: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model, _ = tiny_model("llama")
    layer = model.get_submodule(module)
    if module.endswith("o_proj"):
        layer.register_forward_pre_hook(lambda module, args: (change(args[0].clone()),))
    else:
        layer.register_forward_hook(lambda module, args, output: change(output))
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
