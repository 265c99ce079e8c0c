"""A model with its own modules and the caller's tensors.

TransformerLens and nnsight rewire the modules of the model that they are given and offer no way back. They are given a
shadow instead: module tree and config are copied, parameters, buffers and the caller's hooks are the very same
objects. It costs no memory for weights, and the caller's model is never touched.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class Shadow:
    """A weight-sharing copy of a module tree.

    Args:
        model: the caller's model. Hooks that it has now fire on the shadow too; hooks added later do not.

    Attributes:
        module: the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for module in model.modules():
            for tensor in [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]:
                if isinstance(tensor, Tensor):
                    memo[id(tensor)] = tensor
            for name, hooks in vars(module).items():
                if name.endswith("_hooks") and isinstance(hooks, dict):  # a copied hook would feed a copied recorder
                    memo.update({id(hook): hook for hook in hooks.values()})
        self.module: Any = copy.deepcopy(model, memo)
        self._pairs = [(module, memo[id(module)]) for module in model.modules()]

    def sync(self) -> None:
        """Carry over what the caller may have changed since: training mode, and tensors put in the place of others."""
        for original, shadow in self._pairs:
            if shadow.training is not original.training:
                shadow.training = original.training
            for theirs, ours in ((original._parameters, shadow._parameters), (original._buffers, shadow._buffers)):
                for name, tensor in theirs.items():
                    if ours.get(name) is not tensor:
                        ours[name] = tensor
