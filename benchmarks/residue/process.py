"""What can be seen of the process and of the machine; knows no library.

Every module that is loaded is looked through: a function, class, method or property that is another one later was
replaced, a name that a class gained was added. Only what was loaded before is compared, so that importing a library is
no residue by itself, and what it does to the code of others is.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from .snapshot import Difference, Facts, Identity, comparable, digest, shown

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OURS = __package__
_DESCRIPTORS = (property, classmethod, staticmethod, types.GetSetDescriptorType, types.MemberDescriptorType)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)


def process_facts() -> Facts:
    """Settings of Python, PyTorch, numpy, logging and warnings, and the state of every random generator."""
    facts: Facts = {}
    for kind, found in (
        ("warnings filters", {"filters": tuple(map(repr, warnings.filters))}),
        ("random state", dict(_random_states())),
        ("torch settings", dict(_torch_settings())),
        ("global module hooks", dict(_global_hooks())),
        ("numpy settings", {"errors": str(np.geterr()), "printing": str(np.get_printoptions())}),
        ("python settings", dict(_python_settings())),
        ("environment", dict(os.environ)),
        ("threads", {"threads": tuple(sorted(each.name for each in threading.enumerate()))}),
        ("machine code", dict(_machine_code())),
        ("child processes", {"children": len(psutil.Process().children(recursive=True))}),
    ):
        facts |= {("process", kind, place): value for place, value in found.items()}
    for name, logger in [("root", logging.root), *sorted(logging.root.manager.loggerDict.items())]:
        if isinstance(logger, logging.Logger):
            facts["process", "logging", name] = (
                logging.getLevelName(logger.level),
                "disabled" if logger.disabled else "enabled",
                "propagates" if logger.propagate else "does not propagate",
                *map(Identity, logger.handlers),
            )
    return facts


def only_known(before: Facts, after: Facts) -> Facts:
    """`after` without loggers that came with an import: a new logger changes nothing of the user's."""
    return {key: value for key, value in after.items() if key[1] != "logging" or key in before}


def _random_states() -> Iterator[tuple[str, Any]]:
    yield "torch", digest(torch.get_rng_state())
    yield "python", hash(random.getstate())
    name, keys, *rest = np.random.get_state()
    yield "numpy", (str(name), digest(torch.from_numpy(np.asarray(keys).astype(np.int64))), *map(float, rest))
    if torch.cuda.is_available():
        yield "cuda", tuple(map(digest, torch.cuda.get_rng_state_all()))


def _torch_settings() -> Iterator[tuple[str, Any]]:
    yield "default dtype", torch.get_default_dtype()
    yield "default device", str(torch.get_default_device())
    yield "threads", torch.get_num_threads()
    yield "interop threads", torch.get_num_interop_threads()
    yield "grad enabled", torch.is_grad_enabled()
    yield "inference mode", torch.is_inference_mode_enabled()
    yield "anomaly detection", torch.is_anomaly_enabled()
    yield "deterministic algorithms", torch.are_deterministic_algorithms_enabled()
    yield "matmul precision", torch.get_float32_matmul_precision()
    yield "autocast on CPU", torch.is_autocast_enabled("cpu")
    yield "function modes", torch._C._len_torch_function_stack()
    yield "dispatch modes", torch._C._len_torch_dispatch_stack()
    yield "printing", str(vars(torch._tensor_str.PRINT_OPTS))


def _global_hooks() -> Iterator[tuple[str, Any]]:
    for name in _GLOBAL_HOOKS:
        yield name, tuple(map(Identity, getattr(torch.nn.modules.module, name).values()))


def _python_settings() -> Iterator[tuple[str, Any]]:
    for name in ("excepthook", "displayhook", "unraisablehook", "stdout", "stderr"):
        yield f"sys.{name}", Identity(getattr(sys, name))
    yield "sys.path", tuple(sys.path)
    yield "sys.meta_path", tuple(map(Identity, sys.meta_path))
    yield "sys.path_hooks", tuple(map(Identity, sys.path_hooks))
    yield "recursion limit", sys.getrecursionlimit()
    yield "switch interval", sys.getswitchinterval()
    yield "trace function", comparable(sys.gettrace())
    yield "profile function", comparable(sys.getprofile())
    yield "working directory", os.getcwd()
    yield "garbage collection", (gc.isenabled(), *gc.get_threshold(), *map(Identity, gc.callbacks))
    for number in sorted(signal.valid_signals()):
        handler = signal.getsignal(number)
        yield f"signal {int(number)}", Identity(handler) if callable(handler) else str(handler)


def _machine_code() -> Iterator[tuple[str, str]]:
    """Hashes of the C library's and the interpreter's code as it lies in memory; on Linux alone."""
    maps = Path("/proc/self/maps")
    code: dict[str, Any] = {}
    for line in maps.read_text(encoding="utf-8").splitlines() if maps.exists() else ():
        span, rights, _, _, _, *path = line.split(maxsplit=5)
        name = Path(path[0]).name if path else ""
        if rights.startswith("r-x") and name.startswith(("libc.so", "libc-", "libm.so", "python", "libpython")):
            start, end = (int(each, 16) for each in span.split("-"))
            # a part whose rights were changed for a while is a mapping of its own: parts are joined
            code.setdefault(name, hashlib.blake2b(digest_size=8)).update(ctypes.string_at(start, end - start))
    yield from ((name, digest.hexdigest()) for name, digest in code.items())


@dataclass(frozen=True)
class Names:
    """Every name that is bound in a loaded module, or in a class of one, and what it stood for."""

    owners: Mapping[str, tuple[Any, Mapping[str, Any]]]  # the owner by its dotted name, and a copy of its namespace

    @classmethod
    def taken(cls) -> Names:
        """As things are now."""
        return cls({name: (owner, dict(vars(owner))) for name, owner in _owners()})

    def changed(self) -> list[Difference]:
        """What was replaced or removed since then, what classes gained, and what others put into a module."""
        return sorted(self._changed(), key=lambda each: (each.kind, each.place))

    def _changed(self) -> Iterator[Difference]:
        for place, (owner, before) in self.owners.items():
            now = vars(owner)
            for name, was in before.items():
                is_now = now.get(name)
                if is_now is not was and _is_code(was):
                    after = "removed" if name not in now else shown(Identity(is_now))
                    yield Difference("process", "functions replaced", f"{place}.{name}", shown(Identity(was)), after)
            for name in now.keys() - before.keys():
                value = now[name]
                if isinstance(owner, type):
                    if any(vars(base).get(name) is value for base in owner.__mro__[1:]):
                        continue  # what the name stood for anyway
                    kind = "attributes added to classes"
                elif isinstance(value, types.FunctionType) and _top(value.__module__) != _top(place):
                    kind = "functions added to modules"
                else:
                    continue  # a module that loads its own parts when they are asked for
                yield Difference("process", kind, f"{place}.{name}", "absent", shown(Identity(value)))


def _is_code(value: Any) -> bool:
    return callable(value) or issubclass(type(value), _DESCRIPTORS)  # not isinstance, which asks the value itself


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _owners() -> Iterator[tuple[str, Any]]:
    for name, module in list(sys.modules.items()):
        if not isinstance(module, types.ModuleType) or name == "__main__" or name.startswith(_OURS):
            continue
        yield name, module
        for attribute, value in list(vars(module).items()):
            if issubclass(type(value), type) and value.__module__ == name and value.__qualname__ == attribute:
                yield f"{name}.{attribute}", value


class Writes:
    """Files and folders that this process opens for writing, from now on until it ends: audit hooks stay."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._on = True
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        path: Any = None
        if event == "open":
            path, mode, flags = arguments
            if not (flags & _WRITING if mode is None else set(mode) & set("wax+")):
                return
        elif event in ("os.mkdir", "sqlite3.connect"):
            path = arguments[0]
        elif event == "os.rename":
            path = arguments[1]
        if isinstance(path, (str, bytes, os.PathLike)):
            self._paths.append(os.path.abspath(os.fsdecode(path)))

    def left(self) -> set[str]:
        """Those that are still there, without devices; no more is heard."""
        self._on = False
        return {path for path in self._paths if not path.startswith(("/dev/", "/proc/")) and os.path.exists(path)}


def files(folder: Path) -> Facts:
    """Every file and folder below one, by its relative path, with its size."""
    found = sorted(folder.rglob("*"))
    return {
        ("machine", "files", str(path.relative_to(folder))): path.stat().st_size if path.is_file() else "a folder"
        for path in found
    }


@dataclass
class LiveTensors:
    """The tensors that are alive in this process, without keeping them so."""

    known: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    storages: set[int] = field(default_factory=set)

    @classmethod
    def taken(cls) -> LiveTensors:
        """As things are now, after garbage was collected."""
        gc.collect()
        found = list(_tensors())
        return cls({id(each): weakref.ref(each) for each in found}, {_address(each) for each in found})

    def new(self, model: nn.Module) -> tuple[int, int]:
        """How many tensors are alive that were not, and how many bytes of memory that none of the old ones used.

        Gradients of a model's parameters are not counted: a training step makes new ones.
        """
        gc.collect()
        count, sizes, gradients = 0, dict[int, int](), {id(each.grad) for each in model.parameters()}
        for each in _tensors():
            known = self.known.get(id(each))
            if (known is None or known() is not each) and id(each) not in gradients:
                count += 1
                if _address(each) not in self.storages:
                    sizes[_address(each)] = _bytes(each)
        return count, sum(sizes.values())


def _tensors() -> Iterator[Tensor]:
    for each in gc.get_objects():
        if issubclass(type(each), Tensor):  # not isinstance, which would wake what loads itself when it is looked at
            yield each


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
        return id(tensor)


def _bytes(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return 0
