"""What it takes to say something: measures of a program from its syntax tree, and of what changes between two.

A program is a module with a function `run`. What stands before the comment `# --- operation` in it, and all imports,
are the set-up; what follows is the operation. Docstrings, comments, annotations and what is imported for them alone
count for nothing, nor does the line `def run`; all else is counted from the tree, so that layout does not matter.
"""

from __future__ import annotations

import ast
import copy
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosslens.adapters.errors import InputError

from .vocabulary import architecture, names

MARKER = "# --- operation"

_COMPOUND = (
    ast.With, ast.For, ast.While, ast.If, ast.Try, ast.FunctionDef, ast.ClassDef, ast.Lambda,
)  # fmt: skip
_IGNORED = {
    tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER,
    tokenize.ENCODING,
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A program taken apart; `setup` and `operation` are statements without docstrings and annotations."""

    setup: tuple[ast.stmt, ...]
    operation: tuple[ast.stmt, ...]

    @property
    def statements(self) -> tuple[ast.stmt, ...]:
        return self.setup + self.operation


@dataclass(frozen=True)
class Measures:
    """Of one program.

    Args:
        setup_lines, operation_lines: logical lines (statements; a compound one counts as one, and its body besides).
        setup_tokens, operation_tokens: tokens of Python.
        names: distinct names of the library that occur, including words in texts that it is given.
        architecture: distinct names of modules that only this family of models has.
        nesting: how deep compound statements and lambdas lie inside one another.
    """

    setup_lines: int
    operation_lines: int
    setup_tokens: int
    operation_tokens: int
    names: tuple[str, ...]
    architecture: tuple[str, ...]
    nesting: int

    @property
    def lines(self) -> int:
        """All logical lines."""
        return self.setup_lines + self.operation_lines

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.setup_tokens + self.operation_tokens


def measure(path: Path, library: Sequence[str], modules: Iterable[str] = ()) -> Measures:
    """Measure a program.

    Args:
        path: of the program.
        library: top-level modules of the library; `torch` stands for PyTorch's hooks and gradients alone.
        modules: names that are specific to the family of models that it is for.
    """
    program = read(path)
    words = frozenset(modules)
    return Measures(
        lines(program.setup), lines(program.operation), len(tokens(program.setup)), len(tokens(program.operation)),
        tuple(sorted(names(program.statements, library) - words)),
        tuple(sorted(architecture(program.statements, words))),
        nesting(program.statements),
    )  # fmt: skip


def read(path: Path) -> Program:
    """Take a program apart; what it imports from a module beside it is part of its set-up.

    Raises:
        InputError: it has no function `run`, or no marker inside it.
    """
    text = path.read_text(encoding="utf-8")
    marked = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and token.string.strip() == MARKER
    ]
    tree = _Plain().visit(ast.parse(text))
    body = _imported(tree.body)
    runs = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    if len(runs) != 1 or len(marked) != 1 or not runs[0].lineno < marked[0] <= (runs[0].end_lineno or 0):
        raise InputError(f"{path} needs one function run, with one comment {MARKER!r} in it")
    setup: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            setup += _imported(_Plain().visit(ast.parse((path.parent / f"{node.module}.py").read_text("utf-8"))).body)
        elif node is not runs[0]:
            setup.append(node)
    before = [node for node in runs[0].body if node.lineno < marked[0]]
    return Program((*setup, *before), tuple(runs[0].body[len(before) :]))


def lines(statements: Iterable[ast.stmt]) -> int:
    """Logical lines: statements, those inside others too."""
    return sum(isinstance(node, ast.stmt) for each in statements for node in ast.walk(each))


def tokens(statements: Iterable[ast.stmt]) -> list[str]:
    """Tokens of Python, as the tree is written out; a formatted text is one, whatever Python's version."""
    text = "\n".join(ast.unparse(_Whole().visit(copy.deepcopy(each))) for each in statements)
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string for token in found if token.type not in _IGNORED]


def pieces(statements: Iterable[ast.stmt]) -> list[str]:
    """Tokens, with texts taken apart into words and signs: a path in a text changes as one of attributes does."""
    return [piece for token in tokens(statements) for piece in re.findall(r"\w+|\W", token) or [token]]


def nesting(statements: Iterable[ast.AST]) -> int:
    """Largest number of compound statements and lambdas that lie inside one another."""
    return max(
        (isinstance(node, _COMPOUND) + nesting(ast.iter_child_nodes(node)) for node in statements), default=0
    )  # fmt: skip


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein distance of two lists: how many items to insert, to delete or to replace."""
    before = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        row = [i]
        for j, right in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right)))
        before = row
    return before[-1]


def _imported(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without imports that nothing refers to, once annotations are gone."""
    used = {node.id for each in body for node in ast.walk(each) if isinstance(node, ast.Name)}
    out: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] in used]
            if not node.names or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
                continue
        out.append(node)
    return out


class _Plain(ast.NodeTransformer):
    """Without docstrings and annotations."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body: Any = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            first = body[0]
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                node.body = body[1:] or [ast.copy_location(ast.Pass(), first)]
        return super().generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))


class _Whole(ast.NodeTransformer):
    """With each formatted text as one text."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.copy_location(ast.Constant(ast.unparse(node)), node)
