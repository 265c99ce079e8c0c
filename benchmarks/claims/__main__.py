"""Run every claim, those of one library in one process, and print a table: `python -m crosslens.benchmarks.claims`."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

import crosslens.benchmarks.claims as claims
from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.program import Parts, check_page, keep, run_program

_CODE = f"""
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        found = importlib.import_module("{claims.__name__}." + name).main()
    except Exception as error:
        found = {{"error": f"{{type(error).__name__}}: {{error}}"}}
    print("FOUND", json.dumps({{"name": name}} | found, default=str), flush=True)
"""
_SECONDS = 600

_HEAD = """# What libraries do when they are used directly

Printed by `python -m crosslens.benchmarks.claims`, which runs every program. A program uses a library as its
documentation says, prints what that leads one to expect and what comes out, and names the version. `holds` is no where
an upgrade has mended it. `upstream` is the thread where it was found to be reported."""


def run(names: Iterable[str]) -> list[dict[str, Any]]:
    """What `main()` of each claim gives, all from one new process; `error` where it ended in one.

    The claims of a process must not disturb one another: those of one library do not.
    """
    asked = list(names)
    command = [sys.executable, "-W", "ignore", "-c", _CODE, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    lines = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = {each["name"]: each for each in map(json.loads, (line.removeprefix("FOUND ") for line in lines))}
    last = done.stderr.strip().rpartition("\n")[2]
    died = {"error": f"the process ended with {done.returncode}: {last}"}
    return [_complete(found.get(name, {"name": name} | died)) for name in asked]


def _complete(found: dict[str, Any]) -> dict[str, Any]:
    """With the fields that one that ended in an error lacks."""
    if "error" not in found:
        return found
    empty = {"claim": title(found["name"]), "library": "", "version": "", "upstream": "", "expected": ""}
    return found | empty | {"observed": found["error"], "holds": False}


def names() -> list[str]:
    """Every claim, by the name of its module."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.name.startswith("_"))


def by_library() -> dict[str, list[str]]:
    """Claims by what they have in common: the library that their names begin with."""
    groups: dict[str, list[str]] = {}
    for name in names():
        groups.setdefault(name.partition("_")[0], []).append(name)
    return groups


def title(name: str) -> str:
    """The first line of a claim's documentation."""
    return _documentation(name).partition("\n")[0]


def right(name: str) -> str:
    """The right way, as a claim's documentation says."""
    return " ".join(_documentation(name).rpartition("\nRight: ")[2].split())


def _documentation(name: str) -> str:
    spec = find_spec(f"{claims.__name__}.{name}")
    assert spec is not None
    assert spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def table(found: Iterable[dict[str, Any]]) -> str:
    """A row a claim."""
    rows = ["| library | claim | expected | observed | right | upstream | program | holds |", "|" + "---|" * 8]
    for each in found:
        name = each["name"]
        cells = [
            f"{each['library']} {each['version']}",
            each["claim"],
            _shown(each["expected"]),
            _shown(each["observed"]),
        ]
        cells += [right(name), each["upstream"], f"[{name}.py](../../../benchmarks/claims/{name}.py)"]
        rows.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, "yes" if each["holds"] else "no"]) + " |"
        )
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(parts: Parts) -> list[dict[str, Any]]:
    """Run all that the parts lack, library by library."""
    groups = by_library()
    left = [library for library in groups if library not in parts]
    for library in track(left, description="libraries", console=Console(stderr=True)):
        parts.add(library, run(groups[library]))
    return [each for library in groups for each in parts[library]]


def page(found: Sequence[dict[str, Any]]) -> str:
    """What came of it; claims that no longer hold have a section of their own."""
    holding, mended = ([each for each in found if each["holds"] is holds] for holds in (True, False))
    libraries = sorted({each["library"] for each in holding})
    numbers = ", ".join(f"{name} {sum(each['library'] == name for each in holding)}" for name in libraries)
    parts = [_HEAD, f"{len(holding)} hold: {numbers}.", table(holding)]
    if mended:
        parts += ["## Did not reproduce", table(mended)]
    return "\n\n".join(parts) + "\n"


def main(
    out: Annotated[
        Path | None, typer.Option(help="A .md file for the page, .json beside it for what was measured; else printed.")
    ] = None,
) -> None:
    """Run every claim, and print or keep what came of it."""
    check_page(out)
    found = measure(Parts(out, environment([])))
    keep(out, json.dumps(found, indent=1) + "\n", page(found))


if __name__ == "__main__":
    run_program(main)
