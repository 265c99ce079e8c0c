"""The text of the programs that a page names, as this version of crosslens has them."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.resources import files

from markupsafe import Markup

_LINK = re.compile(r"(?:^|/)benchmarks/([\w./-]+\.py)$")


class Programs:
    """Programs by key: a path below `benchmarks/`, or `path::function` for one function of it.

    Attributes:
        texts: key -> text of every program that was asked for and found.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The key, where this version has the program; its text is kept."""
        if key not in self.texts:
            path, _, function = key.partition("::")
            text = _file(path)
            if text is not None and function:
                text = _function(path, function)
            if text is None:
                return None
            self.texts[key] = text
        return key

    def add(self, key: str, text: str) -> str:
        """Keep a text that is no file of this package; returns its key."""
        self.texts[key] = text
        return key

    def button(self, target: str, name: str) -> Markup | None:
        """What opens the program that a link points at; None where it points at none of this version."""
        found = _LINK.search(target)
        key = self.get(found[1]) if found else None
        if key is None:
            return None
        return Markup('<button type="button" class="code" data-program="{}">{}</button>').format(key, name)


def _file(path: str) -> str | None:
    parts = path.split("/")
    if not path.endswith(".py") or any(part in ("", ".", "..") for part in parts):
        return None
    file = files("crosslens.benchmarks").joinpath(*parts)
    return file.read_text(encoding="utf-8") if file.is_file() else None


@cache
def _functions(path: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Of a file's functions, their text and the names that they use."""
    text = _file(path) or ""
    lines = text.split("\n")
    return {
        node.name: (
            "\n".join(lines[node.lineno - 1 : node.end_lineno]),
            frozenset(each.id for each in ast.walk(node) if isinstance(each, ast.Name)),
        )
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def _function(path: str, name: str) -> str | None:
    """A function, after those of its module that it needs."""
    known = _functions(path)
    if name not in known:
        return None
    wanted, waiting = {name}, [name]
    while waiting:
        new = (known[waiting.pop()][1] & known.keys()) - wanted
        wanted |= new
        waiting += new
    needed = [text for each, (text, _) in known.items() if each in wanted and each != name]
    return "\n\n\n".join([*needed, known[name][0]])
