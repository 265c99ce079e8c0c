"""tdhook 0.3.0: saliency leaves the caller's input requiring a gradient.

Claim: the gradient methods call `requires_grad_()` on the tensors that they are given; after `Saliency` the caller's
own tensor is part of the graph of whatever is computed from it next, and can no longer be changed in place.
Documentation followed: "Getting Started", its basic example, with `Saliency` in the place of `IntegratedGradients`.
Right: the input as it was: `x.detach().requires_grad_()` shares its memory.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from tdhook.attribution import Saliency
from tensordict import TensorDict
from torch import Tensor, nn


def main() -> dict[str, Any]:
    """Attribute once; `holds` where the caller's tensor has changed."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(2, 4)
    before = _state(inputs)

    def second(targets: Any, _: Any) -> TensorDict:
        return TensorDict({"out": targets["output"][..., 1]}, batch_size=targets.batch_size)

    with Saliency(init_attr_targets=second).prepare(model) as hooked:
        hooked(TensorDict({"input": inputs}, batch_size=[2]))
    after = _state(inputs)
    return {
        "claim": "after saliency the caller's input requires a gradient",
        "library": "tdhook",
        "version": version("tdhook"),
        "upstream": "not found upstream",
        "observed": after,
        "expected": before,
        "holds": before != after,
    }


def _state(inputs: Tensor) -> dict[str, Any]:
    try:
        inputs.mul_(1)
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    return {"requires_grad": inputs.requires_grad, "refused in place": refused}


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
