"""nnsight 0.8.1: `cache(modules=[...])` with a name that does not exist caches nothing, without an error.

Claim: names are not looked up; a misspelled one, or one without the leading `model.` of the wrapper's path, gives an
empty cache.
Documentation followed: documentation of `tracer.cache`: `modules` takes module paths or envoys.
Right: give envoys, `wrapped.model.layers[1]`. Through crosslens a site that matches nothing is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from nnsight import NNsight

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Cache by a path that lacks the wrapper's prefix and by a bogus one; `holds` where the cache is empty."""
    model, _ = tiny_model("llama", attn_implementation="eager")
    ids = torch.arange(3, 11).repeat(2, 1)
    wrapped = NNsight(model)
    with torch.no_grad(), wrapped.trace(ids) as tracer:
        cache = tracer.cache(modules=["model.layers.1", "bogus"]).save()
    with torch.no_grad(), wrapped.trace(ids) as tracer:
        right = tracer.cache(modules=[wrapped.model.layers[1]]).save()
    return {
        "claim": "names of modules that match nothing give an empty cache, without an error",
        "library": "nnsight",
        "version": version("nnsight"),
        "upstream": "https://github.com/ndif-team/nnsight/pull/716",
        "observed": {"entries": len(list(cache.keys()))},
        "expected": {"entries": len(list(right.keys()))},
        "holds": not list(cache.keys()) and len(list(right.keys())) == 1,
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
