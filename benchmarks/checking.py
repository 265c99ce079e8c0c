"""`crosslens check`: the conformance kit on the command line."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from crosslens.adapters import InputError, load_backend
from crosslens.adapters.conformance import conformance_checks
from crosslens.adapters.conformance.outcomes import save, summarise
from crosslens.tasks import known_models

from .plan import known
from .store import to_json

_STATUSES = ("passed", "failed", "xfailed", "xpassed")


def check_backend(name: str, model: Sequence[str], only: str | None, as_json: bool, folder: Path | None = None) -> bool:
    """Run the checks of a backend and print what came of them; False if any failed.

    Args:
        folder: where the outcomes are kept, for the feature table; None keeps none.

    Raises:
        InputError: an unknown backend or model, a filter that leaves nothing, or outcomes of a part that shall be kept.
        BackendNotInstalledError: the backend's library is missing.
    """
    if folder is not None and (model or only):
        raise InputError("only the outcomes of the whole kit are kept: leave --model and -k out, or --save")
    checks = conformance_checks(name, _families(model)) if model else conformance_checks(name)
    chosen = [check for check in checks if only is None or only in check.id]
    if not chosen:
        raise InputError(f"no check of {name!r} has {only!r} in its id; such an id is {checks[0].id!r}")
    err = Console(stderr=True)
    found: list[dict[str, Any]] = []
    results = []
    start = time.process_time()
    for check in track(chosen, description=name, console=err, transient=True, disable=not err.is_terminal):
        outcome = check.run()
        results.append((check, outcome))
        found.append(
            {"id": check.id, "capability": check.capability, "status": outcome.status, "message": outcome.message}
        )
    bad = [entry for entry in found if entry["status"] in ("failed", "xpassed")]
    counts = Counter(entry["status"] for entry in found)
    if as_json:
        summary = {status: counts[status] for status in _STATUSES}
        print(to_json({"backend": name, "summary": summary, "checks": found}, indent=2))
    else:
        _print(name, found, bad, counts)
    if folder is not None and not bad:
        path = save(summarise(load_backend(name), results, round(time.process_time() - start, 1)), folder)
        err.print(f"kept in {path}", markup=False, highlight=False, soft_wrap=True)
    return not bad


def _families(names: Sequence[str]) -> list[str]:
    """The model families of tiny models."""
    tiny = {entry.name: entry.family for entry in known_models() if entry.kind == "random"}
    return [tiny[known("tiny model", name, tiny)] for name in dict.fromkeys(names)]


def _print(name: str, found: Sequence[dict[str, Any]], bad: Sequence[dict[str, Any]], counts: Counter[str]) -> None:
    console = Console()
    grid = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False)
    grid.add_column("capability", no_wrap=True)
    for status in _STATUSES:
        grid.add_column(status, justify="right")
    by_capability: dict[str, Counter[str]] = {}
    for entry in found:
        by_capability.setdefault(entry["capability"], Counter())[entry["status"]] += 1
    for capability, row in by_capability.items():
        style = "red" if row["failed"] or row["xpassed"] else ""
        grid.add_row(capability, *(str(row[status] or "") for status in _STATUSES), style=style)
    console.print(grid)
    for entry in bad:
        console.print(Text.assemble((f"{entry['status']} {entry['id']}", "red"), f"\n  {entry['message']}"))
    total = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    console.print(Text(f"{name}: {total}", style="red" if bad else "green"))
    if counts["xfailed"]:
        console.print(Text("xfailed: not supported, as declared. xpassed: works although declared not to.", "dim"))
