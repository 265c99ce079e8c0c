"""Native PyTorch: forward hooks, and a function mode for what happens between modules.

The baseline of every table: nothing but `torch.nn.Module` hooks, registered for one forward and removed after it.
Attention after softmax belongs to no module; PyTorch's own `TorchFunctionMode` sees the call that makes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .attention import eager_attention
from .errors import SiteError
from .inspector import Inspector
from .plan import Location, Plan, Point, Probe
from .sites import Site


class HooksInspector(Inspector):
    """Plain PyTorch hooks on the caller's model.

    `native:PATH.output` and `native:PATH.input` are what the submodule at PATH returns and gets, PATH being what
    `Module.get_submodule` takes.
    """

    name: ClassVar[str] = "hooks"

    def _locate(self, site: Site) -> Location:
        if site.kind != "native":
            return super()._locate(site)
        path, _, side = site.address.rpartition(".")
        if side not in ("input", "output"):
            raise SiteError(f"site {site.name!r}: for this backend write native:PATH.output or native:PATH.input")
        try:
            self.model.get_submodule(path)
        except AttributeError as error:
            raise SiteError(f"site {site.name!r}: {error}") from None
        return Location(Point(path, side))

    def _forward(self, plan: Plan) -> Any:
        probes = plan.probes()
        softmax = _SoftmaxProbes(self._dtype)
        with ExitStack() as undo:
            for probe in probes:
                for handle in self._attach(probe, softmax):
                    undo.callback(handle.remove)
            if softmax.used:
                undo.enter_context(eager_attention(self.model))
                undo.enter_context(softmax)
            return self.model(*plan.args, **plan.kwargs)

    def _attach(self, probe: Probe, softmax: _SoftmaxProbes) -> list[RemovableHandle]:
        assert isinstance(probe.key, Point)
        module = self.model.get_submodule(probe.key.path)
        if probe.key.side == "output":
            return [module.register_forward_hook(_on_output(probe))]
        if probe.key.side == "input":
            return [module.register_forward_pre_hook(_on_input(probe), with_kwargs=True)]
        return softmax.watch(module, probe)


def _on_output(probe: Probe) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        new = probe(output)
        return None if new is output else new

    return hook


def _on_input(probe: Probe) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = probe(args[0])
            return None if new is args[0] else ((new, *args[1:]), kwargs)
        key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        if key is None:
            name = probe.visits[0].site.name
            raise SiteError(f"site {name!r}: the module is called without a tensor among its arguments")
        new = probe(kwargs[key])
        return None if new is kwargs[key] else (args, {**kwargs, key: new})

    return hook


class _SoftmaxProbes(TorchFunctionMode):
    """Shows the result of `softmax` inside watched attention modules to their probes."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._softmax = inspect.unwrap(nn.functional.softmax)  # torchlens wraps it, for the whole process
        self._current: Probe | None = None
        self.used = False

    def watch(self, attention: nn.Module, probe: Probe) -> list[RemovableHandle]:
        """Say that `probe` belongs to the softmax inside `attention`."""
        self.used = True

        def enter(module: nn.Module, args: Any) -> None:
            self._current = probe

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._current = None

        return [attention.register_forward_pre_hook(enter), attention.register_forward_hook(leave)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._current is not None and inspect.unwrap(func) is self._softmax:
            # Llama's softmax works in float32 and casts back: the site is the pattern in the model's dtype
            return self._current(out.to(self._dtype))
        return out
