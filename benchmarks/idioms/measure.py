"""What it takes to say something: measures of a program from its syntax tree, and of what changes between two.

A program is a module with a function `run`. What stands before the comment `# --- operation` in it, and all imports,
are the set-up; what follows is the operation. Docstrings, comments, annotations and what is imported for them alone
count for nothing, nor does the line `def run`; everything else is counted from the tree, so that layout does not matter.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from crosslens.adapters.errors import InputError

MARKER = "# --- operation"

_EVERYBODYS = frozenset(
    {name for kind in (str, list, dict, tuple, set, int, float) for name in dir(kind)}
    | (set(dir(torch.Tensor)) - {"trace", "apply_"})
    | {"logits", "loss", "config", "generate", "input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels"}
    | {"use_cache", "max_new_tokens", "do_sample", "num_attention_heads", "num_hidden_layers", "hidden_size", "dtype"}
    | {"device", "head_dim", "sequences", "tokenizer", "run", "eos_token_id", "output_attentions", "num_key_value_heads"}
)  # fmt: skip
"""Names that a user of PyTorch and transformers knows; they are not the library's, whatever they hang on."""
_HOOKS = (set(dir(nn.Module)) | set(dir(RemovableHandle))) - set(dir(object)) | {
    "autograd", "grad", "no_grad", "retain_grad", "requires_grad_", "backward",
}  # fmt: skip
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
    text = "\n".join(ast.unparse(each) for each in statements)
    found: list[str] = []
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        depth += (kind == "FSTRING_START") - (kind == "FSTRING_END")
        if kind == "FSTRING_END" and not depth:
            found.append('f""')
        elif not depth and token.type not in _IGNORED:
            found.append('f""' if re.match(r"[rR]?[fF][rR]?['\"]", token.string) else token.string)
    return found


def nesting(statements: Iterable[ast.AST]) -> int:
    """Largest number of compound statements and lambdas that lie inside one another."""
    return max(
        (isinstance(node, _COMPOUND) + nesting(ast.iter_child_nodes(node)) for node in statements), default=0
    )  # fmt: skip


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Levenshtein distance of two lists of tokens: how many to insert, to delete or to replace."""
    before = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        row = [i]
        for j, right in enumerate(other, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (left != right)))
        before = row
    return before[-1]


def architecture(statements: Iterable[ast.stmt], modules: frozenset[str]) -> set[str]:
    """Which of the names of modules occur, as attributes or as words in texts."""
    found: set[str] = set()
    for node in _walk(statements):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(_words(node.value))
    return found & modules


def names(statements: Sequence[ast.stmt], library: Sequence[str]) -> set[str]:
    """Names of the library: what is imported from it; attributes and keywords of what comes from it; words given to it.

    What comes from it is followed through assignments, loops, `with` and comprehensions by name. For PyTorch itself it
    is the attributes of `nn.Module` and what belongs to gradients.
    """
    if tuple(library) == ("torch",):
        return {node.attr for node in _walk(statements) if isinstance(node, ast.Attribute)} & _HOOKS
    found, own = _imports(statements, library)
    size = -1
    while size != len(own):
        size = len(own)
        for node in _walk(statements):
            for target, value in _bindings(node):
                if _comes_from(value, own):
                    own.update(each.id for each in ast.walk(target) if isinstance(each, ast.Name))
    for node in _walk(statements):
        if isinstance(node, ast.Attribute) and _comes_from(node.value, own):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and _comes_from(node.func, own):
            found.update(keyword.arg for keyword in node.keywords if keyword.arg)
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                found.update(_texts(argument))
        elif isinstance(node, ast.Subscript) and _comes_from(node.value, own):
            found.update(_texts(node.slice))
    return {name for name in found if name not in _EVERYBODYS and not name.startswith("__")}


def _imports(statements: Sequence[ast.stmt], library: Sequence[str]) -> tuple[set[str], set[str]]:
    """Names imported from the library, and the local names that they have."""
    found: set[str] = set()
    own: set[str] = set()
    for node in _walk(statements):
        if isinstance(node, ast.Import):
            hits = [alias for alias in node.names if alias.name.partition(".")[0] in library]
            own.update(alias.asname or alias.name.partition(".")[0] for alias in hits)
            found.update(part for alias in hits for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in library:
            own.update(alias.asname or alias.name for alias in node.names)
            found.update(part for part in (node.module or "").split("."))
            found.update(alias.name for alias in node.names)
    return found, own


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        yield from ((target, node.value) for target in node.targets)
    elif isinstance(node, ast.For | ast.comprehension):
        yield node.target, node.iter
    elif isinstance(node, ast.withitem) and node.optional_vars is not None:
        yield node.optional_vars, node.context_expr


def _comes_from(value: ast.AST, own: set[str]) -> bool:
    """Whether an expression is the library's, is called on or taken out of it, or is a list of such."""
    if isinstance(value, ast.Name):
        return value.id in own
    if isinstance(value, ast.Attribute | ast.Subscript | ast.Starred):
        return _comes_from(value.value, own)
    if isinstance(value, ast.Call):
        return _comes_from(value.func, own) or any(_comes_from(each, own) for each in value.args)
    if isinstance(value, ast.ListComp | ast.GeneratorExp):
        return _comes_from(value.elt, own) or _comes_from(value.generators[0].iter, own)
    if isinstance(value, ast.List | ast.Tuple):
        return any(_comes_from(each, own) for each in value.elts)
    if isinstance(value, ast.BinOp):
        return _comes_from(value.left, own) or _comes_from(value.right, own)
    return False


def _texts(node: ast.AST) -> set[str]:
    """Words in the texts of an expression that are not inside a call of their own."""
    if isinstance(node, ast.Call):
        return set()
    if isinstance(node, ast.Constant):
        return set(_words(node.value)) if isinstance(node.value, str) else set()
    return {word for child in ast.iter_child_nodes(node) for word in _texts(child)}


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Za-z_]\w+", text)]


def _walk(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for each in statements:
        yield from ast.walk(each)


def _imported(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without imports that nothing refers to, once annotations are gone."""
    used = {node.id for node in _walk(body) if isinstance(node, ast.Name)}
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
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
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
