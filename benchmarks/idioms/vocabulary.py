"""Which names of a library, and of a family of models, a program is written in: read from its syntax tree alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

_EVERYBODYS = frozenset(name for kind in (str, list, dict, tuple, set, torch.Tensor) for name in dir(kind))
"""Attributes that Python's types and PyTorch's tensors have."""
_OF_MODELS = frozenset(
    {"logits", "loss", "config", "input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels", "use_cache"}
    | {"max_new_tokens", "do_sample", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size"}
    | {"intermediate_size", "n_inner", "output_attentions", "tokenizer", "device", "dtype"}
)
"""Names of transformers, or of any library that takes a model; they are not the library's."""
_CHOSEN = frozenset(
    {"cpu", "local", "hidden", "group", "trial", "stream", "embeds", "outputs", "images", "score", "saved"}
)
"""Words that the programs choose themselves."""
_HOOKS = (set(dir(nn.Module)) | set(dir(RemovableHandle))) - set(dir(object)) | {
    "autograd", "grad", "no_grad", "retain_grad", "requires_grad_", "backward",
}  # fmt: skip
"""Attributes that PyTorch's hooks and gradients are written in."""


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

    What comes from it is followed through assignments, loops, `with`, comprehensions and functions, by name. An
    attribute of what may be a tensor of its is not counted where PyTorch's tensors, or Python's own types, have it. For
    PyTorch itself the names are the attributes of `nn.Module` and what belongs to gradients.
    """
    if tuple(library) == ("torch",):
        return {node.attr for node in _walk(statements) if isinstance(node, ast.Attribute)} & _HOOKS
    found, imported = _imports(statements, library)
    own, objects = _own(statements, imported)
    bound: dict[str, list[ast.AST]] = {}
    for node in _walk(statements):
        for target, value in _bindings(node):
            if isinstance(target, ast.Name):
                bound.setdefault(target.id, []).append(value)
    for node in _walk(statements):
        if isinstance(node, ast.Attribute) and _comes_from(node.value, own):
            clear = isinstance(node.value, ast.Name) and node.value.id in objects
            if clear or node.attr not in _EVERYBODYS:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and _comes_from(node.func, own):
            found.update(keyword.arg for keyword in node.keywords if keyword.arg)
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                found.update(_texts(argument, bound))
        elif isinstance(node, ast.Subscript) and _comes_from(node.value, own):
            found.update(_texts(node.slice, bound))
    return {name for name in found - _OF_MODELS - _CHOSEN if not name.startswith("__")}


def _own(statements: Sequence[ast.stmt], imported: set[str]) -> tuple[set[str], set[str]]:
    """Local names of what comes from the library, and those of them that are no tensors: imported, or made by that."""
    own, objects = set(imported), set(imported)
    size = -1
    while size != len(own) + len(objects):
        size = len(own) + len(objects)
        for node in _walk(statements):
            for target, value in _bindings(node):
                if _comes_from(value, own):
                    own.update(each.id for each in ast.walk(target) if isinstance(each, ast.Name))
                if isinstance(target, ast.Name) and isinstance(value, ast.Call) and _root(value.func) in imported:
                    objects.add(target.id)
            if isinstance(node, ast.FunctionDef) and any(_comes_from(value, own) for value in _returned(node)):
                own.add(node.name)
    return own, objects


def _root(value: ast.AST) -> str:
    """Name that a chain of attributes hangs on; empty for any other expression."""
    while isinstance(value, ast.Attribute):
        value = value.value
    return value.id if isinstance(value, ast.Name) else ""


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


def _returned(function: ast.FunctionDef) -> Iterator[ast.AST]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value


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


def _texts(node: ast.AST, bound: Mapping[str, Sequence[ast.AST]]) -> set[str]:
    """Words in the texts of an expression, and of what its names stand for, that are not inside a call of their own."""
    if isinstance(node, ast.Call):
        return set()
    if isinstance(node, ast.Constant):
        return set(_words(node.value)) if isinstance(node.value, str) else set()
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Name):
        children = bound.get(node.id, ())
        bound = {name: values for name, values in bound.items() if name != node.id}  # a name may stand for itself
    return {word for child in children for word in _texts(child, bound)}


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[A-Za-z_]\w+", text)]


def _walk(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for each in statements:
        yield from ast.walk(each)
