"""tdhook 0.3.0: a capture that never happens is an empty result, not an error.

Claim: a target at a `ModuleList`, a container that is never called, is accepted and captures nothing; a pattern that
matches no module, be it misspelled, gives an empty cache. A loop over the captures then does nothing.
Documentation followed: the tutorials "HookSession" (`session.capture(Target(...))`) and "Activation caching"
(`ActivationCaching(pattern).prepare(model)`).
Right: an error, as crosslens raises for both.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from tdhook.latent import ActivationCaching
from tdhook.session import HookSession
from tdhook.targets import Target
from tensordict import TensorDict
from torch import Tensor, nn

from crosslens.adapters import SiteError, open_inspector


def main() -> dict[str, Any]:
    """Capture at a container and by a misspelled pattern; `holds` where both are empty and nothing was raised."""
    torch.manual_seed(0)
    model, inputs = _Layers(), torch.randn(2, 4)
    with HookSession(model) as session:
        at_container = session.capture(Target("layers", "activation", -1, (0, 1, 2, 3)))
        at_layer = session.capture(Target("layers.1", "activation", -1, (0, 1, 2, 3)))
        model(inputs)
    sizes = {}
    for pattern in (r"layers\.1", r"layer\.1"):  # the second is misspelled
        with ActivationCaching(pattern).prepare(model) as hooked:
            hooked(TensorDict({"input": inputs}, batch_size=[2]))
            sizes[pattern] = len(list(hooked.hooking_context.cache.keys()))
    observed = {"at the container": len(at_container.values), "by the misspelled pattern": sizes[r"layer\.1"]}
    seen = {"at a layer": len(at_layer.values), "by the right pattern": sizes[r"layers\.1"]}
    sites = {"at the container": "module:layers:output", "by the misspelled pattern": "module:layer.1:output"}
    return {
        "claim": "a container and a pattern that matches nothing capture nothing, without an error",
        "library": "tdhook",
        "version": version("tdhook"),
        "upstream": "not found upstream",
        "observed": {**observed, **seen},
        "expected": {**{what: _refusal(model, inputs, site) for what, site in sites.items()}, **seen},
        "holds": not any(observed.values()) and all(seen.values()),
    }


def _refusal(model: nn.Module, inputs: Tensor, site: str) -> str:
    with open_inspector("tdhook", model) as lens:
        try:
            lens.run(inputs, capture=site)
        except SiteError as error:
            return f"SiteError: {error}"
    return "no error"


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
