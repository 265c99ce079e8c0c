"""The programs of each library: which module holds them, and what it says about the mistakes that it does not make."""

from __future__ import annotations

import importlib
import inspect
import pydoc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .catalogue import BY_NAME
from .scene import Scene

Program = Callable[[Scene], Any]
"""Gives what the user gets."""

LIBRARIES: Mapping[str, str] = {
    "crosslens": "through_crosslens",
    "crosslens (nnsight)": "through_crosslens",
    "crosslens (transformer_lens)": "through_crosslens",
    "hooks": "hooks",
    "transformer_lens": "transformer_lens",
    "nnsight": "nnsight",
    "pyvene": "pyvene",
    "torchlens": "torchlens",
    "tdhook": "tdhook",
    "penzai": "penzai",
    "captum": "captum",
    "inseq": "inseq",
    "comgra": "comgra",
}
"""Row of the table -> module of this package."""


@dataclass(frozen=True)
class Programs:
    """What a module holds.

    Args:
        library: row of the table.
        version: of the library.
        made: mistake -> the program that makes it.
        imports: modules to import before the first program; a user's process would have them.
        absent: mistake -> why it is not made with this library; the key "" stands for all others.
        impossible: mistake -> why it cannot be made with it.
        culprits: mistake -> a regular expression in place of the catalogue's.
        documented: mistake -> (dotted name, words of its docstring that state the result).
        notes: mistake -> a remark.
        meant: mistake -> the same program without the mistake, where the catalogue's result is none of this library's.
    """

    library: str
    version: str
    made: Mapping[str, Program]
    imports: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    impossible: Mapping[str, str] = field(default_factory=dict)
    culprits: Mapping[str, str] = field(default_factory=dict)
    documented: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    meant: Mapping[str, Program] = field(default_factory=dict)

    def reason(self, mistake: str) -> str:
        """Why the mistake is not made with this library; empty where it is, or cannot be."""
        if mistake in self.made or mistake in self.impossible:
            return ""
        return self.absent.get(mistake) or self.absent[""]


def programs(library: str) -> Programs:
    """The programs of a row of the table; imports no library.

    Raises:
        KeyError: no such row.
    """
    module = importlib.import_module(f"{__package__}.{LIBRARIES[library]}")
    made = {name: getattr(module, name) for name in BY_NAME if inspect.isfunction(getattr(module, name, None))}
    sayings: dict[str, Any] = {
        name.lower(): getattr(module, name)
        for name in ("IMPORTS", "ABSENT", "IMPOSSIBLE", "CULPRITS", "DOCUMENTED", "NOTES", "MEANT")
        if hasattr(module, name)
    }
    return Programs(library, _version(module.DISTRIBUTION), made, **sayings)


def states(path: str, words: str) -> bool:
    """Whether the docstring of what a dotted name leads to has these words, whatever its line breaks."""
    found = pydoc.locate(path)
    text = found if isinstance(found, str) else inspect.getdoc(found) or ""
    return " ".join(words.split()) in " ".join(text.split())


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
