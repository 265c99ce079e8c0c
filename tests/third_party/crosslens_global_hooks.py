"""An example of a third party's backend: PyTorch's process-wide module hooks, instead of a hook on each module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from crosslens.adapters import Inspector, Support
from crosslens.adapters.plan import Plan, Point, Probe

_BETWEEN = Support("never", "a process-wide hook sees what passes between modules, and no softmax inside one")


class GlobalHooksInspector(Inspector):
    """Two hooks for the whole process, which act at the modules of this model that the plan names."""

    name: ClassVar[str] = "global_hooks"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "capture.pattern": _BETWEEN,
        "edit.pattern": _BETWEEN,
        "gradients.pattern": _BETWEEN,
        "capture.native": Support("notimpl", "its addresses are those of module: sites"),
    }

    def _forward(self, plan: Plan) -> Any:
        probes: dict[tuple[int, str], Probe] = {}
        for probe in plan.probes():
            assert isinstance(probe.key, Point)
            probes[id(self.model.get_submodule(probe.key.path)), probe.key.side] = probe

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            probe = probes.get((id(module), "input"))
            return None if probe is None or not args else (probe(args[0]), *args[1:])

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            probe = probes.get((id(module), "output"))
            return None if probe is None else probe(output)

        handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
        try:
            return self.model(*plan.args, **plan.kwargs)
        finally:
            for handle in handles:
                handle.remove()
