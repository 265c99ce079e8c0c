"""Backends by name: found through entry points, loaded when opened.

A third party registers a backend in its own distribution:

    [project.entry-points."crosslens.adapters"]
    mine = "my_package.adapter:MyInspector"
"""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from .errors import BackendNotInstalledError, InputError
from .inspector import Inspector
from .state import random_state_kept
from .versions import warn_if_untested

GROUP = "crosslens.adapters"


def backends() -> list[str]:
    """Names of all registered backends, installed or not; plain hooks first."""
    return sorted(_entries(), key=lambda name: (name != "hooks", name))


def load_backend(name: str) -> type[Inspector]:
    """The Inspector class of a backend.

    Raises:
        InputError: no such backend; names the nearest.
        BackendNotInstalledError: its library is missing; names the extra to install.
    """
    entries = _entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no backend {name!r}; {hint}registered: {', '.join(backends())}")
    entry = entries[name]
    try:
        with random_state_kept():  # JAX draws from numpy's on import
            found: type[Inspector] = entry.load()
    except ImportError as error:
        if error.name is None or importlib.util.find_spec(error.name.partition(".")[0]) is not None:
            raise  # the library is there and broken: its own error says more
        raise BackendNotInstalledError(
            f"backend {name!r} needs {error.name!r}, which is not installed; {_how_to_install(entry)}"
        ) from error
    if found.library is not None:
        warn_if_untested(entry, found.library)
    return found


def _how_to_install(entry: EntryPoint) -> str:
    """The command that installs a backend's library: an extra of the distribution that registers it."""
    owner, extra = entry.dist, entry.name.replace("_", "-")
    if owner is None or extra not in (owner.metadata.get_all("Provides-Extra") or ()):
        return f"see the documentation of {owner.name if owner else entry.value}"
    beside = " (beside transformer_lens: pip install --no-deps inseq captum treescope)" if extra == "inseq" else ""
    return f"pip install '{owner.name}[{extra}]'{beside}"


def open_inspector(name: str, model: nn.Module, tokenizer: Any = None, **options: Any) -> Inspector:
    """Open a backend on a model; use it as a context manager, or call `close()`.

    Args:
        name: a backend, see `backends()`.
        model: any `nn.Module`. It is never copied, and is as it was after `close()`.
        tokenizer: needed for inputs given as text.
        options: of the backend's own.

    Raises:
        InputError, BackendNotInstalledError: as in `load_backend`.
    """
    return load_backend(name)(model, tokenizer, **options)


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
