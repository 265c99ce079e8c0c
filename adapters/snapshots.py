"""Copies of what passes through the sites of someone else's training step, and of the gradients that come back.

Nothing of the caller's is touched: tensors are copied when they pass, so that later in-place work cannot reach them,
and gradients are read at the nodes of the autograd graph, where `retain_grad` would leave a trace on the tensor and,
after an in-place operation, give the gradient of what the tensor became.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .errors import SiteError
from .plan import Location, Point, View
from .sites import Site

Key = tuple[str, int]
"""Name of a snapshot, and the call that it is of."""
Gradients = dict[Key, Tensor]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A tensor as it passed.

    Attributes:
        name: site, as in a module site that picks from a tuple; or `parameter:NAME`.
        call: how many times the site had been passed in this step before.
        value: copy of the caller's own; half precision is widened to float32, integers and booleans to float64.
            A tensor without any axis but the batch gets one of length 1.
    """

    name: str
    call: int
    value: Tensor


class Snapshots:
    """What one step leaves at the sites.

    Args:
        model: any module.
        sites: site -> where it lives; by modules.
        gradients: whether to read gradients too.
        parameters: whether to copy the parameters, as they are when the step begins.
        device: where the copies go; those of a model that is spread over several meet there.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[Site, Location], gradients: bool, parameters: bool, device: torch.device
    ) -> None:
        self._device = device
        self._model = model
        self._sites = sites
        self.reads_gradients = gradients
        self._parameters = parameters
        self._calls: dict[str, int] = {}
        self._batch = 0
        self._leaves: list[Any] = []  # nodes of leaves live only as long as someone holds them
        self.activations: dict[Key, Snapshot] = {}
        """(name, call) -> what passed, in the order of passing."""
        self.parameters: dict[Key, Snapshot] = {}
        self._direct: Gradients = {}
        self._behind: Gradients = {}

    def take(self) -> Gradients:
        """(name, call) -> sum of the gradients of all backwards since the last call; no entry where none came."""
        taken = {**self._direct, **self._behind}
        self._direct.clear()
        self._behind.clear()
        return taken

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what runs inside; no hook is left after it."""
        with ExitStack() as self._undo:
            if self._parameters:
                for name, parameter in self._model.named_parameters():
                    if parameter.numel():
                        self._see(f"parameter:{name}", 0, parameter, View(), self.parameters)
            entry = self._model.register_forward_pre_hook(self._enter, with_kwargs=True)
            self._undo.callback(entry.remove)
            for site, location in self._sites.items():
                self._attach(site, location)
            yield
        self._leaves.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = _first_tensor(args, kwargs)
        self._batch = len(first) if isinstance(first, Tensor) and first.ndim else 0

    def _attach(self, site: Site, location: Location) -> None:
        key = location.key
        assert isinstance(key, Point), "checked before"
        module = self._model.get_submodule(key.path)

        def output(module: nn.Module, args: Any, output: Any) -> None:
            self._pass(site, location.view, output)

        def entry(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._pass(site, location.view, _first_tensor(args, kwargs))

        if key.side == "input":
            self._undo.callback(module.register_forward_pre_hook(entry, with_kwargs=True).remove)
        else:
            self._undo.callback(module.register_forward_hook(output).remove)

    def _pass(self, site: Site, view: View, value: Any) -> None:
        call = self._calls.get(site.name, 0)
        self._calls[site.name] = call + 1
        if site.kind == "canonical":
            if not isinstance(value, Tensor):  # a module that returns more beside it, or the model itself
                value = value["logits"] if isinstance(value, Mapping) else value[0]
            self._see(site.name, call, value, view, self.activations)
            return
        address = site.module
        if address.call in (None, call):
            for items, tensor in _tensors(value, address.items, site.name):
                suffix = "" if address.call is None else f"#{call}"
                self._see(f"module:{address.path}:{address.side}{items}{suffix}", call, tensor, view, self.activations)

    def _see(self, name: str, call: int, tensor: Tensor, view: View, where: dict[Key, Snapshot]) -> None:
        key = (name, call)
        if key in where:  # a pick from a tuple that is recorded whole as well
            return
        with torch.inference_mode(False), torch.no_grad():
            value = _copy(view.read(tensor.detach(), self._batch), name, self._device, where is self.parameters)
            where[key] = Snapshot(name, call, value)
            if self.reads_gradients and tensor.requires_grad:
                self._follow(key, tensor, view, value)

    def _follow(self, key: Key, tensor: Tensor, view: View, like: Tensor) -> None:
        batch, base = self._batch, tensor._base
        self._listen(tensor, key, like, self._direct, lambda grad: view.read(grad, batch))
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

        self._listen(base, key, like, self._behind, behind)

    def _listen(
        self, tensor: Tensor, key: Key, like: Tensor, into: Gradients, read: Callable[[Tensor], Tensor | None]
    ) -> None:
        edge = get_gradient_edge(tensor)
        number = edge.output_nr  # and not the edge: its node would hold itself

        def hook(grads: Sequence[Tensor | None]) -> None:
            grad = grads[number]
            if grad is None:
                return
            with torch.no_grad():
                found = read(grad.detach() if grad.layout == torch.strided else grad.detach().to_dense())
                if found is not None:
                    found = found.reshape(like.shape).to(like, copy=True)
                    into[key] = into[key] + found if key in into else found

        self._undo.callback(edge.node.register_prehook(hook).remove)
        if tensor.is_leaf:
            self._leaves.append(edge.node)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module is called with: its first argument, or the first tensor among those that have a name."""
    return args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def _tensors(value: Any, items: Sequence[int | str], name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in what a module returned, or in the pick from it, with its own `[0].key`."""
    spelled = ""
    for item in items:
        try:
            value = value[item]
        except (KeyError, IndexError, TypeError):
            raise SiteError(f"site {name!r}: nothing at {item!r} in a {type(value).__name__}") from None
        spelled += _spell(item)
    yield from _leaves(value, spelled)


def _leaves(value: Any, spelled: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield spelled, value
    elif isinstance(value, Mapping):  # a ModelOutput too
        for key, part in value.items():
            yield from _leaves(part, spelled + _spell(key))
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _leaves(part, spelled + _spell(index))


def _spell(item: Any) -> str:
    return f"[{item}]" if isinstance(item, int) else f".{item}"


def _copy(tensor: Tensor, name: str, device: torch.device, parameter: bool) -> Tensor:
    if tensor.is_complex() or tensor.is_nested:
        raise SiteError(f"site {name!r} holds {'complex numbers' if tensor.is_complex() else 'a nested tensor'}; "
                        "key figures are of plain real tensors, so leave it out")  # fmt: skip
    if not tensor.ndim and not parameter:
        raise SiteError(f"site {name!r} holds a single number, without a batch axis; give it to step.loss()")
    if not tensor.numel():
        raise SiteError(f"site {name!r} holds an empty tensor, {tuple(tensor.shape)}; it has no key figures")
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if not tensor.is_floating_point():
        dtype = torch.float64
    else:
        dtype = torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype
    copy = tensor.to(device, dtype, copy=True)
    return copy.unsqueeze(-1) if copy.ndim == (0 if parameter else 1) else copy
