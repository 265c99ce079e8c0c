"""`crosslens models`, `backends` and `tasks`: what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crosslens.adapters import CAPABILITIES, BackendNotInstalledError, load_backend
from crosslens.adapters import backends as backend_names
from crosslens.tasks import known_models, tasks

from .environment import library_version
from .store import to_json

_MARK = {"supported": "yes", "notimpl": "not yet", "upstream": "no", "never": "-"}


def list_models(as_json: bool) -> None:
    """Print the models known by name."""
    found = [asdict(entry) for entry in known_models()]
    if as_json:
        print(to_json(found, indent=2))
        return
    grid = _grid("model", "family", "layers", "parameters", "cached", "weights")
    for entry in known_models():
        grid.add_row(
            entry.name,
            entry.family,
            str(entry.layers),
            f"{entry.parameters:,}",
            "yes" if entry.cached else "no",
            f"{'trained' if entry.kind == 'real' else 'random'}, {entry.source}",
        )
    for column in grid.columns[:-1]:
        column.no_wrap = True
    Console().print(grid)


def list_backends(as_json: bool) -> None:
    """Print the backends, their versions, and what each says that it can do."""
    found = {name: backend_facts(name) for name in backend_names()}
    if as_json:
        print(to_json([{"name": name, **facts} for name, facts in found.items()], indent=2))
        return
    console = Console()
    grid = _grid("backend", "library", "version", "installed", "capabilities")
    for name, facts in found.items():
        states = facts["capabilities"] or {}
        able = sum(state["state"] == "supported" for state in states.values())
        count = f"{able} of {len(states)}" if states else ""
        grid.add_row(name, facts["library"] or "", facts["version"] or "", "yes" if facts["installed"] else "no", count)
    console.print(grid)
    installed = [name for name, facts in found.items() if facts["installed"]]
    matrix = _grid("capability", *installed)
    reasons = []
    for capability in CAPABILITIES:
        states = [found[name]["capabilities"][capability] for name in installed]
        matrix.add_row(capability, *(_MARK[state["state"]] for state in states))
        for name, state in zip(installed, states, strict=True):
            if state["state"] != "supported":
                reasons.append(f"{name}, {capability}: {state['reason']} {state['issue'] or ''}".rstrip())
    console.print(matrix)
    for line in [*reasons, *(facts["problem"] for facts in found.values() if facts["problem"])]:
        console.print(Text(line, style="dim"))


def backend_facts(name: str) -> dict[str, Any]:
    """Library, version, whether it is installed, capability states; `problem` says why it cannot be used."""
    none: dict[str, Any] = {"library": None, "version": None, "installed": False, "capabilities": None}
    try:
        kind = load_backend(name)
    except BackendNotInstalledError as error:
        return none | {"problem": str(error)}
    except Exception as error:  # a library that is there and broken may raise anything
        return none | {"problem": f"{name} cannot be imported: {type(error).__name__}: {error}"}
    library = kind.library or "torch"
    return {
        "library": library,
        "version": library_version(library),
        "installed": True,
        "capabilities": {capability: asdict(state) for capability, state in kind.supports().items()},
        "problem": None,
    }


def list_tasks(as_json: bool) -> None:
    """Print the tasks."""
    found = [
        {"name": task.name, "question": task.question, "source": task.source, "needs": list(task.needs)}
        for task in tasks()
    ]
    if as_json:
        print(to_json(found, indent=2))
        return
    grid = _grid("task", "question", "needs", "source")
    for task in tasks():
        grid.add_row(task.name, task.question, ", ".join(task.needs), task.source)
    Console().print(grid)


def _grid(*headers: str) -> Table:
    grid = Table(*headers, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    grid.columns[0].no_wrap = True
    return grid
