"""Each library used directly: the programs of `idioms`, and those of `direct`, with their set-up done once.

A program of `idioms` is a function `run` whose body has a comment between set-up and operation. Here its text is put
together again so that the operation is a function inside the set-up, on the same lines; not a word of either changes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import linecache
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from crosslens.adapters.shadow import Shadow
from crosslens.benchmarks import idioms
from crosslens.benchmarks.direct import DIRECTLY
from crosslens.benchmarks.idioms.catalogue import LIBRARIES, entry
from crosslens.benchmarks.idioms.measure import MARKER
from crosslens.benchmarks.timing import Call

from .operations import NEW, OPERATIONS, Work

_CAPTURES = ("capture_one", "capture_residuals")
_PER_ROW = {("captum", "gradient_at_site")}
"""Programs that differentiate a metric of each row, where that of the others is of the first."""


def direct_call(backend: str, operation: str, work: Work, stack: ExitStack) -> Call | str:
    """The library's own way, set up; or why it has none; or nothing, where there is no program to ask.

    Args:
        stack: closes what is open when the call is no longer needed.
    """
    if operation in _CAPTURES and backend in DIRECTLY:
        layers = [work.layer] if operation == "capture_one" else None
        call: Call = stack.enter_context(DIRECTLY[backend](_own(work), work.ids, layers))
        return call
    idiom = OPERATIONS[operation].idiom
    if not idiom or backend not in LIBRARIES:
        return ""
    program = entry(backend, idiom, "llama")
    if program.path is None:
        return program.reason
    if (backend, idiom) in _PER_ROW and len(work.ids) > 1:
        return "its program is for one row"
    return operation_of(program.path)(**_arguments(program.path, idiom, work))


def native_call(operation: str, work: Work) -> Call:
    """Plain hooks: what everybody is held to."""
    each = OPERATIONS[operation]
    if each.native is not None:
        return each.native(work)
    program = entry("hooks", each.idiom, "llama")
    assert program.path is not None, f"there is no program in plain hooks of {each.idiom}"
    return operation_of(program.path)(**_arguments(program.path, each.idiom, work))


def operation_of(path: Path) -> Callable[..., Call]:
    """A program's set-up as a function of the arguments of `run`, which gives the operation to be called again."""
    name = f"{idioms.__name__}.{path.parent.name}.{path.stem}"
    importlib.import_module(name)  # classes made in it are looked up there
    lines = path.read_text(encoding="utf-8").splitlines()
    (run,) = (node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.FunctionDef))
    at = next(i for i in range(run.lineno, run.end_lineno or 0) if lines[i].strip() == MARKER)
    body = textwrap.indent("\n".join(lines[at + 1 : run.end_lineno]), "    ").splitlines()
    text = "\n".join([*lines[:at], "    def operation() -> Any:", *body, "    return operation", ""])
    file = f"<operation of {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # nnsight reads the source of what it traces
    namespace: dict[str, Any] = {"__name__": name, "__package__": name.rpartition(".")[0]}
    exec(compile(text, file, "exec"), namespace)
    made: Callable[..., Call] = namespace["run"]
    return made


def _own(work: Work) -> Any:
    """A model that a library may leave things on, frozen parameters and their gradients too; it shares the weights."""
    own, made = Shadow(work.model).module, dict[int, nn.Parameter]()
    for module in own.modules():
        for name, each in module._parameters.items():
            if each is not None:
                new = made.setdefault(id(each), nn.Parameter(each.detach(), requires_grad=each.requires_grad))
                module._parameters[name] = new
    work.parameters.extend(made.values())
    return own


def _arguments(path: Path, idiom: str, work: Work) -> dict[str, Any]:
    """What `run` of a program asks for."""
    model = _own(work)
    model.config.use_cache = False  # as everybody's forwards here; a generation's own settings are elsewhere
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    has = {
        "model": model, "tokenizer": work.tokenizer, "ids": work.ids, "source": work.source, "text": work.text,
        "target": work.tokenizer.decode([work.token]), "layer": 0 if idiom == "gradient_at_site" else work.layer,
        "position": work.ids.shape[1] - 1, "neuron": work.neuron, "head": work.head, "vector": work.vector,
        "token": work.token, "other": work.other, "new_tokens": NEW,
    }  # fmt: skip
    module = importlib.import_module(f"{idioms.__name__}.{path.parent.name}.{path.stem}")
    return {name: has[name] for name in inspect.signature(module.run).parameters}
