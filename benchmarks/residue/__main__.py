"""Measure the residue of every use, or of some: `python -m crosslens.benchmarks.residue --out results/residue.md`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from crosslens.benchmarks.environment import environment, library_version
from crosslens.benchmarks.program import begun, check_page, chosen, keep, keep_measured, run_program

from .table import markdown
from .uses import USES

SECONDS = 600
"""That one process may take."""

_KEPT = ("PATH", "LANG", "LC_", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
# Of the environment: what a library sets must not be there already, from the caller's shell or from what the caller has
# imported.

_IMPORTS = 3  # processes whose median is the cost of importing


def run(what: str, name: str, *, clean: bool = True) -> dict[str, Any]:
    """What a fresh process finds, whose home, temporary and working folders are new and empty.

    Args:
        what: `use`, or `import` for the cost of importing alone.
        name: of a use.
        clean: whether the documented clean-up is done.

    A process that dies or takes too long gives `error`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, job = Path(scratch, "seen"), Path(scratch, "job.json")
        for each in ("home", "temporary", "work"):
            (folder / each).mkdir(parents=True)
        job.write_text(
            json.dumps({"what": what, "name": name, "clean": clean, "folder": str(folder)}), encoding="utf-8"
        )
        settings = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), "OMP_NUM_THREADS": "1"}
        settings |= {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        kept = {key: value for key, value in os.environ.items() if key.startswith(_KEPT)}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "crosslens.benchmarks.residue.worker", str(job)],
                cwd=folder / "work",
                env=kept | settings,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took longer than {SECONDS} s"}
        found = job.with_suffix(".found")
        if not found.exists():
            last = done.stderr.strip().rpartition("\n")[2]
            return {"error": f"the process ended with {done.returncode}: {last}"}
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return result


def measured(name: str) -> dict[str, Any]:
    """Everything about one use, as it is kept."""
    use = USES[name]
    costs = [run("import", name) for _ in range(_IMPORTS)] if use.imports else []
    good = [each for each in costs if "error" not in each]
    return {
        "library": use.library,
        "version": library_version(use.library) if use.library else None,
        "follows": use.follows,
        "cleans": use.cleans,
        "clean": run("use", name),
        "left": run("use", name, clean=False) if use.cleans else None,
        "import": {key: statistics.median(each[key] for each in good) for key in good[0]} if good else None,
    }


def main(
    library: Annotated[list[str] | None, typer.Option(help="a use; all of them unless told, may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="a .md file; what was measured goes beside it as .json")] = None,
) -> None:
    """What is left of the user's model, tokenizer, process and machine after one use of each library."""
    names = chosen(library or [], USES, "use")
    check_page(out)
    kept: dict[str, Any] = {"environment": environment(use.library for use in USES.values() if use.library), "uses": {}}
    if out is not None and library and out.with_suffix(".json").exists():
        kept["uses"] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["uses"]
    elif not library:
        kept["uses"] = begun(out, kept["environment"]).get("uses", {})
        names = [name for name in names if name not in kept["uses"]]
    for name in track(names, description="uses", console=Console(stderr=True)):
        kept["uses"][name] = measured(name)
        ordered = {each: kept["uses"][each] for each in USES if each in kept["uses"]}
        kept["uses"] = ordered
        keep_measured(out, json.dumps(kept, indent=1) + "\n")
    keep(out, json.dumps(kept, indent=1) + "\n", markdown(kept))


if __name__ == "__main__":
    run_program(main)
