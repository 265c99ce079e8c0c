"""Run every claim in a process of its own, and print what came of it: `python -m crosslens.benchmarks.claims`."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from typing import Any

import crosslens.benchmarks.claims as claims


def run(name: str) -> dict[str, Any]:
    """What `main()` of a claim gives, from a process of its own."""
    code = f"import json; from {claims.__name__}.{name} import main; print(json.dumps(main(), default=str))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return {"claim": name, "library": "", "version": "", "observed": last, "expected": "", "holds": False}
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def names() -> list[str]:
    """Every claim, by the name of its module."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.name.startswith("_"))


def table() -> str:
    """A row a claim."""
    rows = ["| library | claim | observed | expected | holds | program |", "|---|---|---|---|---|---|"]
    for name in names():
        found = run(name)
        holds = "yes" if found["holds"] else "no"
        cells = [f"{found['library']} {found['version']}", found["claim"], _shown(found["observed"])]
        cells += [_shown(found["expected"]), holds, f"[{name}.py](../benchmarks/claims/{name}.py)"]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print("# What libraries do when they are used directly\n")
    print(
        "Printed by `python -m crosslens.benchmarks.claims`, each claim in a process of its own. The program says which"
    )
    print("documentation it follows and what the right way is; `holds` is no where the defect is gone.\n")
    print(table())
