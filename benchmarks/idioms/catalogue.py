"""Which program does which operation in which library, and what its header says of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crosslens.adapters.errors import InputError

from .impossible import IMPOSSIBLE
from .operations import OPERATIONS, families

HERE = Path(__file__).parent

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "hooks": ("torch",),
    "crosslens": ("crosslens",),
    "transformer_lens": ("transformer_lens",),
    "nnsight": ("nnsight",),
    "pyvene": ("pyvene",),
    "torchlens": ("torchlens",),
    "tdhook": ("tdhook", "tensordict"),
    "captum": ("captum",),
    "inseq": ("inseq",),
    "penzai": ("penzai", "jax"),
    "comgra": ("comgra",),
}
"""Rows of the table -> top-level modules whose names belong to the library."""

DISTRIBUTIONS: Mapping[str, str] = {"hooks": "torch", "transformer_lens": "transformer-lens"}
"""Where the name of the distribution is not the row's."""

_FIELD = re.compile(r"^(Documentation|Serves|Wrong|Raises|Note)(?: \((\w+)\))?: ", re.MULTILINE)


@dataclass(frozen=True)
class Header:
    """What a program's docstring says.

    Args:
        question: its first line.
        documentation: the page that it follows.
        serves: families of models that this very text is for.
        wrong: family -> why what it returns is not right there.
        raises: family -> why it ends in an error there.
        note: anything else.
    """

    question: str
    documentation: str
    serves: tuple[str, ...]
    wrong: Mapping[str, str]
    raises: Mapping[str, str]
    note: str


@dataclass(frozen=True)
class Entry:
    """One (library, operation, family): a program, or the reason why there is none."""

    library: str
    operation: str
    family: str
    path: Path | None
    header: Header | None
    reason: str

    @property
    def stated(self) -> str:
        """The outcome that the program's header, or its absence, says."""
        if self.path is None or self.header is None:
            return "impossible"
        if self.family in self.header.raises:
            return "raises"
        return "wrong" if self.family in self.header.wrong else "right"


def entry(library: str, operation: str, family: str) -> Entry:
    """What there is for one operation in one library on one family.

    Raises:
        InputError: neither a program nor a reason, or both; a header without a field that it needs.
    """
    reason = next((IMPOSSIBLE[key] for key in _keys(library, operation, family) if key in IMPOSSIBLE), "")
    found = [path for path in _paths(library, operation) if path.exists() and family in read_header(path).serves]
    if len(found) + bool(reason) != 1:
        raise InputError(
            f"{library} has {len(found)} programs for {operation} on {family} and {'a' if reason else 'no'} reason in "
            "impossible.py; there must be one of the two"
        )
    if reason:
        return Entry(library, operation, family, None, None, reason)
    header = read_header(found[0])
    why = header.raises.get(family, "") or header.wrong.get(family, "")
    return Entry(library, operation, family, found[0], header, why)


def entries(library: str) -> list[Entry]:
    """Everything of one library, in the order of operations."""
    return [entry(library, name, family) for name in OPERATIONS for family in families(name)]


def read_header(path: Path) -> Header:
    """The docstring of a program.

    Raises:
        InputError: it names no documentation, or no family that it serves.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    parts = _FIELD.split(text)
    fields: dict[tuple[str, str], str] = {}
    for name, family, value in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        fields[name, family or ""] = " ".join(value.split())
    serves = tuple(re.findall(r"\w+", fields.get(("Serves", ""), "")))
    if not fields.get(("Documentation", "")) or not serves:
        raise InputError(f"{path.name} of {path.parent.name}: its docstring needs the fields Documentation and Serves")

    def by_family(field: str) -> dict[str, str]:
        found = {family: fields[field, family] for family in serves if (field, family) in fields}
        return found or (dict.fromkeys(serves, fields[field, ""]) if (field, "") in fields else {})

    question = " ".join(parts[0].split())
    return Header(
        question, fields["Documentation", ""], serves, by_family("Wrong"), by_family("Raises"),
        fields.get(("Note", ""), ""),
    )  # fmt: skip


def _paths(library: str, operation: str) -> list[Path]:
    return [HERE / library / f"{operation}{suffix}.py" for suffix in ("", "_gpt2")]


def _keys(library: str, operation: str, family: str) -> list[tuple[str, str, str]]:
    return [(library, operation, family), (library, operation, ""), (library, "", family), (library, "", "")]
