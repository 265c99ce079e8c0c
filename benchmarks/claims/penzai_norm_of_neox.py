"""penzai 0.2.5: the last norm of a converted GPT-NeoX ignores the model's epsilon.

Claim: the converter gives `layer_norm_eps` to the norms of the blocks and leaves the last one at 1e-6; the logits are
off where the two differ.
Documentation followed: documentation of `gpt_neox_from_huggingface_model`; the config is put into the form that it
accepts, which transformers 5 no longer writes.
Right: set `epsilon` of every `pz.nn.Standardize`. Through crosslens every norm has the model's.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from penzai import pz

from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.penzai_convert import _gpt_neox


def main() -> dict[str, Any]:
    """Convert, and look at every norm; `holds` where one has another epsilon than the model."""
    model, _ = tiny_model("gpt_neox")
    norms = pz.select(_gpt_neox(model)).at_instances_of(pz.nn.Standardize).get_sequence()
    found = sorted({float(f"{float(norm.epsilon):.1e}") for norm in norms})
    want = model.config.layer_norm_eps
    return {
        "claim": "the last norm of a converted GPT-NeoX ignores the model's epsilon",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"epsilon of the norms": found},
        "expected": {"epsilon of the norms": [want]},
        "holds": len(found) == 2 and want in found and 1e-6 in found,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
