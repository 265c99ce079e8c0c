"""Hooks for one recorded step of someone else's training loop.

They return nothing and keep no tensor: figures are taken while the tensor passes, so that later in-place work cannot
reach them. Gradients are read at the nodes of the autograd graph, as in `adapters/snapshots.py`, where `retain_grad`
would leave a trace. What goes wrong in a hook is a problem of the recording, never of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from crosslens.adapters.plan import Location, Point, View
from crosslens.adapters.sites import ModuleAddress, Site

from .recording_figures import Figures

Key = tuple[str, str, int, int, str]
"""Kind, site, iteration, call of the site in the iteration, role of the iteration."""
UNNAMED = "gradient"
"""The group of gradients that no call of `step.gradients` names."""
_PLAIN = View()
_in_backward: Callable[[], int] = torch._C._current_graph_task_id


class Watch:
    """What one step leaves at the sites.

    Args:
        model: any module.
        sites: site -> where it lives.
        gradients, parameters: whether to read them.
        figures: where figures go.
        problem: called with what could not be recorded, and why.

    Attributes:
        keys: of each row of `figures`.
        groups: of each row; "" of what is no gradient, None of a row that is void.
        seen: number of times that a site was passed.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[Site, Location], gradients: bool, parameters: bool, figures: Figures,
        problem: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._gradients, self._figures, self._problem = gradients, figures, problem
        self.keys: list[Key] = []
        self.groups: list[str | None] = []
        self.seen = 0
        self.samples = False
        self._iteration, self._role = 0, ""
        self._batch = 0
        self._calls: dict[str, int] = {}
        self._before: dict[tuple[str, int, int], bool] = {}  # whether what passed in the forward had a gradient to come
        self._pending: dict[tuple[Any, ...], int] = {}  # gradients of the group that has no name yet
        self._kept: dict[str, Tensor] = {}
        self._nodes: list[Any] = []  # nodes of leaves live only as long as someone holds them
        self._undo: list[Any] = []
        figures.clear()
        try:
            if parameters:
                self._watch_parameters(model)
            if any(location.view.layout == "flat" for location in sites.values()):
                self._undo.append(model.register_forward_pre_hook(self._enter, with_kwargs=True))
            for site, location in sites.items():
                self._attach(model, site, location)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave no hook behind."""
        for handle in self._undo:
            handle.remove()
        self._undo, self._nodes, self._kept = [], [], {}

    def begin(self, iteration: int, role: str) -> None:
        """What passes from now on is of this iteration."""
        self._iteration, self._role = iteration, role
        self._calls = {}

    def name_gradients(self, group: str) -> None:
        """Those that came since the last call are this group's."""
        for row in self._pending.values():
            if self.groups[row] is not None:
                self.groups[row] = group
        self._pending, self._kept = {}, {}

    def _watch_parameters(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            site = f"parameter:{name}"
            self._read(("parameter", site, 0, 0, ""), parameter, False, "")
            if self._gradients and parameter.requires_grad:
                node = get_gradient_edge(parameter).node
                self._nodes.append(node)
                self._undo.append(node.register_prehook(self._on_parameter(site, parameter)))

    def _on_parameter(self, site: str, parameter: nn.Parameter) -> Callable[[Sequence[Tensor | None]], None]:
        def hook(grads: Sequence[Tensor | None]) -> None:
            try:
                grad = grads[0]
                if grad is not None:
                    self._parameter_gradient(site, parameter, grad)
            except Exception as error:
                self._problem(f"{site}: gradient: {error}")

        return hook

    def _parameter_gradient(self, site: str, parameter: nn.Parameter, grad: Tensor) -> None:
        """The sum of what backwards bring, exactly; `.grad` holds that sum where it was empty before the first."""
        mark = (site,)
        row = self._pending.get(mark)
        if row is None:
            found = self._read(("gradient", site, 0, 0, ""), grad, False, UNNAMED)
            if found is not None:
                self._pending[mark] = found
                if parameter.grad is not None:
                    self._kept[site] = grad.detach().clone()
            return
        if self.groups[row] is None:
            return
        held = self._kept.get(site)
        with torch.no_grad():
            if held is None:
                held = parameter.grad
                if held is None or not self._is_of(row, held):
                    self._void(row, f"{site}: .grad was changed between two backwards of one group; "
                                    "call step.gradients(NAME) before it is")  # fmt: skip
                    return
                total = held.detach() + grad.detach()
            else:
                total = self._kept[site] = held + grad.detach()
        self.groups[row] = None
        found = self._read(("gradient", site, 0, 0, ""), total, False, UNNAMED)
        if found is not None:
            self._pending[mark] = found

    def _is_of(self, row: int, tensor: Tensor) -> bool:
        """Whether a row holds the figures of a tensor."""
        figures = self._figures
        old = figures.row(row).copy()
        again = figures.row(figures.read(tensor, False, False))
        figures.count -= 1
        same = old[0] == again[0] and old[7] == again[7] and old[8] == again[8]
        return bool(same and abs(old[5] - again[5]) <= 1e-9 * old[5])

    def _void(self, row: int, why: str) -> None:
        self.groups[row] = None
        self._problem(why)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = _first(args, kwargs)
        self._batch = len(first) if isinstance(first, Tensor) and first.ndim else 0

    def _attach(self, model: nn.Module, site: Site, location: Location) -> None:
        key = location.key
        assert isinstance(key, Point), "checked before"
        module, view, passed = model.get_submodule(key.path), location.view, self._passed
        address = None if site.kind == "canonical" else site.module
        if key.side == "input":

            def entry(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                passed(site, address, view, _first(args, kwargs))

            self._undo.append(module.register_forward_pre_hook(entry, with_kwargs=True))
        else:

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                passed(site, address, view, output)

            self._undo.append(module.register_forward_hook(leave))

    def _passed(self, site: Site, address: ModuleAddress | None, view: View, value: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            again = _in_backward() != -1  # a checkpoint runs it a second time
            name = site.name
            call = 0
            if not again:
                call = self._calls.get(name, 0)
                self._calls[name] = call + 1
                self.seen += 1
            elif not self._gradients or not self._waits(name):
                return
            if address is None:
                if not isinstance(value, Tensor):  # a module that returns more beside it, or the model itself
                    value = value["logits"] if isinstance(value, Mapping) else value[0]
                self._tensor(name, view, call, value, again)
                return
            if value.__class__ is Tensor and address.call is None and not address.items:
                self._tensor(name, view, call, value, again)
            elif address.call in (None, call):
                for item in address.items:
                    value = value[item]
                if isinstance(value, Tensor):
                    self._tensor(name, view, call, value, again)
                else:
                    for spelled, tensor in _leaves(value, name):
                        self._tensor(spelled, view, call, tensor, again)
        except Exception as error:
            self._problem(f"{site.name}: {error}")

    def _waits(self, name: str) -> bool:
        """Whether what a checkpoint runs again is the one call of a site that had no graph in the forward."""
        waiting = [key for key, had in self._before.items() if key[0].startswith(name) and not had]
        if len({key[1:] for key in waiting}) > 1:
            self._problem(f"{name}: gradients of a site that several reentrant checkpoints run cannot be told apart; "
                          "use_reentrant=False")  # fmt: skip
            return False
        return bool(waiting)

    def _tensor(self, name: str, view: View, call: int, tensor: Tensor, again: bool) -> None:
        iteration, role = self._iteration, self._role
        value = tensor if view is _PLAIN or not view.layout else view.read(tensor.detach(), self._batch)
        if again:
            where = next((key for key, had in self._before.items() if key[0] == name and not had), None)
            if where is None or not tensor.requires_grad:
                return
            _, iteration, call = where
            row = next(i for i, k in enumerate(self.keys) if k[0] == "activation" and k[1:4] == (name, iteration, call))
            role = self.keys[row][4]
            self._before[where] = True
        else:
            self._read(("activation", name, iteration, call, role), value, True, "")
            if not self._gradients:
                return
            self._before[name, iteration, call] = tensor.requires_grad
        if tensor.requires_grad:
            self._follow(("gradient", name, iteration, call, role), tensor, view)

    def _follow(self, key: Key, tensor: Tensor, view: View) -> None:
        batch, base = self._batch, tensor._base
        plain = not view.layout
        self._listen(tensor, key, None if plain else lambda grad: view.read(grad, batch))
        if base is None or not base.requires_grad:
            return
        # work in place on a view leaves its node behind; what it held before reaches the loss through its base alone
        alias, version = tensor.detach(), tensor._version
        layout, place = (base.size(), base.stride()), (tensor.size(), tensor.stride())
        offset = tensor.storage_offset() - base.storage_offset()

        def behind(grad: Tensor) -> Tensor | None:
            if alias._version == version:
                return None
            whole = torch.empty_strided(*layout, dtype=grad.dtype, device=grad.device).copy_(grad)
            return view.read(whole.as_strided(*place, offset), batch)

        self._listen(base, key, behind)

    def _listen(self, tensor: Tensor, key: Key, read: Callable[[Tensor], Tensor | None] | None) -> None:
        node, number = tensor.grad_fn, tensor.output_nr
        if node is None:
            node, number, *_ = get_gradient_edge(tensor)
            self._nodes.append(node)

        def hook(grads: Sequence[Tensor | None]) -> None:
            try:
                grad = grads[number]
                if grad is not None and read is not None:
                    with torch.no_grad():
                        grad = read(grad.detach() if grad.layout is torch.strided else grad.detach().to_dense())
                if grad is not None:
                    self._activation_gradient(key, grad)
            except Exception as error:
                self._problem(f"{key[1]}: gradient: {error}")

        self._undo.append(node.register_prehook(hook))

    def _activation_gradient(self, key: Key, grad: Tensor) -> None:
        row = self._pending.get(key)
        if row is None:
            found = self._read(key, grad, True, UNNAMED)
            if found is not None:
                self._pending[key] = found
        elif self.groups[row] is not None:
            self._void(
                row,
                f"{key[1]}: two backwards brought it gradients under one name; their figures do not add up, so call "
                "step.gradients(NAME) after each",
            )

    def _read(self, key: Key, tensor: Tensor, batched: bool, group: str) -> int | None:
        try:
            row = self._figures.read(tensor, batched, batched and self.samples)
        except Exception as error:
            self._problem(f"{key[1]}: {key[0]}: {error}")
            return None
        self.keys.append(key)
        self.groups.append(group)
        return row


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module is called with: its first argument, or the first tensor among those that have a name."""
    return args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def _leaves(value: Any, name: str) -> list[tuple[str, Tensor]]:
    """Every tensor in what a module returned, with its own `[0].key`."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        parts = [(f"{name}.{key}", part) for key, part in value.items()]
    elif isinstance(value, tuple | list):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(value)]
    else:
        return []
    return [leaf for spelled, part in parts for leaf in _leaves(part, spelled)]
