"""Runs libraries' programs, each library in a process of its own, and joins what came of them with their measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crosslens.adapters.conformance.models import tiny_model

from . import worker
from .catalogue import DISTRIBUTIONS, HERE, LIBRARIES, Entry, entries
from .catalogue import entry as find
from .measure import Measures, distance, measure, pieces, read
from .operations import FAMILIES, families

SECONDS = 600.0
"""How long one program may take; one that takes longer is ended, and those after it run in another process."""


def rows(
    library: str, operations: Sequence[str] = (), progress: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """Every (operation, family) of a library: what came of it, and what its program takes to say it.

    Args:
        library: a key of `LIBRARIES`.
        operations: only these; default all.
        progress: called with each row as soon as it is there.
    """
    wanted = [each for each in entries(library) if not operations or each.operation in operations]
    found: list[dict[str, Any]] = []
    while len(found) < len(wanted):
        left = wanted[len(found) :]
        for row in _outcomes(library, left):
            found.append({**row, **described(left[0])})
            left = left[1:]
            progress(found[-1])
    return found


def described(entry: Entry) -> dict[str, Any]:
    """What can be said of a program without running it."""
    out: dict[str, Any] = {
        "version": _version(entry.library), "stated": entry.stated, "reason": entry.reason, "program": "",
        "documentation": "",
    }  # fmt: skip
    if entry.path is None or entry.header is None:
        return out
    shared = len(entry.header.serves) > 1 or entry.operation == "any_module"
    found = measure(entry.path, LIBRARIES[entry.library], () if shared else own_modules(entry.family))
    return {
        **out, **_columns(found), "program": entry.path.relative_to(HERE).as_posix(),
        "documentation": entry.header.documentation, "distance": _changed(entry),
    }  # fmt: skip


@cache
def own_modules(family: str) -> frozenset[str]:
    """Names of modules that only models of this family have, of the two."""
    parts = {
        each: {
            part for path, _ in tiny_model(each)[0].named_modules() for part in path.split(".") if not part.isdigit()
        }
        for each in FAMILIES
    }
    (other,) = (each for each in FAMILIES if each != family)
    return frozenset(parts[family] - parts[other] - {""})


def _columns(found: Measures) -> dict[str, Any]:
    return {
        "setup_lines": found.setup_lines, "operation_lines": found.operation_lines, "setup_tokens": found.setup_tokens,
        "operation_tokens": found.operation_tokens, "names": list(found.names),
        "architecture": list(found.architecture), "nesting": found.nesting,
    }  # fmt: skip


def _changed(entry: Entry) -> int | None:
    """Words and signs that change between the texts for the two families, where both say that they are right."""
    both = [find(entry.library, entry.operation, family) for family in families(entry.operation)]
    if entry.operation == "any_module" or any(each.stated != "right" for each in both):
        return None
    one, other = (pieces(read(each.path).statements) for each in both if each.path is not None)
    return distance(one, other)


def _version(library: str) -> str:
    try:
        return version(DISTRIBUTIONS.get(library, library))
    except PackageNotFoundError:
        return ""


def _outcomes(library: str, wanted: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Outcomes of some entries, in order, from one process; it ends early after a program that killed the process."""
    names = [f"{each.operation}:{each.family}" for each in wanted]
    command = [sys.executable, "-W", "ignore", "-m", worker.__name__, library, *names]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[str] = []
        ended = 0
        listener = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        listener.start()
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        for line in process.stdout:
            if line.startswith(worker.END):
                ended += 1
                yield json.loads(line.removeprefix(worker.END))
                timer.cancel()
                timer = threading.Timer(SECONDS, process.kill)
                timer.start()
        timer.cancel()
        status = process.wait()
        listener.join()
    if ended < len(wanted):
        dead, last = wanted[ended], said[-1].strip() if said else ""
        key = {"library": library, "operation": dead.operation, "family": dead.family}
        yield {**key, "outcome": "raises", "error": None, "note": f"the process ended with status {status}: {last}"}
