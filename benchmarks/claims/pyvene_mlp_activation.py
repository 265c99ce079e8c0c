"""pyvene 0.1.8: `mlp_activation` of a Llama is the gate alone, not what enters the down projection.

Claim: the component is the output of the activation function; in a gated MLP the neurons are its product with the up
projection.
Documentation followed: documentation of components: `mlp_activation`.
Right: the component `model.layers[L].mlp.down_proj.input`. Through crosslens `mlp.post` is that.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pyvene as pv
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Collect it, and read what the down projection gets; `holds` where they differ."""
    inputs = {"input_ids": torch.arange(3, 11)[None]}
    model, _ = tiny_model("llama")
    seen: dict[str, torch.Tensor] = {}
    down = model.model.layers[0].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda module, args: seen.update(neurons=args[0]))
    collect = pv.CollectIntervention(keep_last_dim=True)
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        collecting = pv.IntervenableModel(
            [{"layer": 0, "component": "mlp_activation", "intervention": collect}], model=model
        )
        got = collecting(base=inputs)[0][1][0]
    off = _off(got.reshape(seen["neurons"].shape), seen["neurons"])
    return {
        "claim": "mlp_activation of a Llama is not what enters the down projection",
        "library": "pyvene",
        "version": version("pyvene"),
        "upstream": "not found upstream",
        "observed": {"largest difference": off},
        "expected": {"largest difference": 0.0},
        "holds": off > 1e-2,
    }


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max())


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
