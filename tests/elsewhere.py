"""A device that is not the CPU, where there is none: its tensors compute on the CPU and refuse to meet those of it.

What PyTorch refuses on a GPU is refused here: an operation on tensors of both places, but for what it lets through
itself, which are copies, numbers without an axis, and index tensors on the CPU. Factories and `.to(ELSEWHERE)` make its
tensors; `.cpu()`, `.item()` and `.tolist()` bring them back, and are counted. It goes by the name of a device type that
PyTorch knows and has nothing for, whose backward runs in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("lazy:0")
_aten = torch.ops.aten
_INDEX = (_aten.index, _aten.index_put, _aten.index_put_, _aten._unsafe_index, _aten._index_put_impl_)
_COPY = (_aten._to_copy, _aten.copy_, _aten.copy)


class There(Tensor):
    """A tensor on `ELSEWHERE`; `held` is what it computes with."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=ELSEWHERE, requires_grad=held.requires_grad,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    def tolist(self) -> Any:
        """PyTorch has none for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


@contextmanager
def elsewhere() -> Iterator[list[tuple[str, int]]]:
    """Inside, `ELSEWHERE` is a device; gives (operation, elements) of each copy of its tensors to the CPU so far."""
    fetched: list[tuple[str, int]] = []
    with _Factories(), _Operations(fetched):
        yield fetched


class _Factories(TorchFunctionMode):
    """Those that PyTorch hides from `_Operations`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to = (kwargs or {}).get("device")
        if func in (torch.tensor, torch.as_tensor) and to is not None and torch.device(to).type == ELSEWHERE.type:
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            args = (args[0], _indices(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _indices(index: Any) -> Any:
    """Lists among indices as the tensors that PyTorch makes of them."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


class _Operations(TorchDispatchMode):
    def __init__(self, fetched: list[tuple[str, int]]) -> None:
        super().__init__()
        self._fetched = fetched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._fetched)


def _run(func: Any, args: Any, kwargs: dict[str, Any], fetched: list[tuple[str, int]] | None) -> Any:
    packet, given = func.overloadpacket, [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, There)]
    to = kwargs.get("device")
    goes = bool(there) if to is None else torch.device(to).type == ELSEWHERE.type
    if packet is _aten.copy_:
        goes = isinstance(args[0], There)
    if there and packet not in _COPY:
        _refuse(func, packet, args, [x for x in given if not isinstance(x, There)])
    if there and fetched is not None and (packet is _aten._local_scalar_dense or (packet in _COPY and not goes)):
        fetched.append((packet.__name__, there[0].numel()))
    if to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare_args, bare_kwargs = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
    out = func(*bare_args, **bare_kwargs)
    if not goes:
        return out
    wrapped = tree_map(lambda x: There(x) if isinstance(x, Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _refuse(func: Any, packet: Any, args: Any, here: list[Tensor]) -> None:
    """Raise where tensors of the CPU take part that may not."""
    if packet in _INDEX and isinstance(args[0], There):
        here = [x for x in tree_flatten(args[2:])[0] if isinstance(x, Tensor) and not isinstance(x, There)]
    if wrong := [x for x in here if x.ndim]:
        shapes = [tuple(x.shape) for x in wrong]
        raise RuntimeError(f"{func}: expected all tensors to be on the same device; of shape {shapes} are on the CPU")
