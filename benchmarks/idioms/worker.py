"""Runs the programs of one library, in a process of its own, and writes what came of each on a line.

Libraries change the process that imports them, so that no two share one. Arguments: LIBRARY [OPERATION:FAMILY]...
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

from .catalogue import Entry, entries
from .operations import OPERATIONS, Verdict, Work, judge

END = "@end "


def run_entry(entry: Entry) -> dict[str, Any]:
    """Run one program on a new model; outcome, error and note, as the table has them."""
    if entry.path is None:
        return {"outcome": "impossible", "error": None, "note": entry.reason}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = OPERATIONS[entry.operation].prepare(entry.family, Path(folder))
        try:
            run = _load(entry.path)
            inputs = {name: case.inputs[name] for name in inspect.signature(run).parameters}
            if case.most_work is None:
                verdict = judge(case, run(**inputs))
            else:
                with Work() as work:
                    result = run(**inputs)
                verdict = judge(case, result, work.flops)
        except Exception as error:
            text = " ".join(str(error).split())
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"{type(error).__name__}: {text[:300]}"
            return {
                "outcome": "raises",
                "error": None,
                "note": note,
                "where": f"{Path(where.filename).name}:{where.lineno}",
            }
        return _as_row(verdict)


def _as_row(verdict: Verdict) -> dict[str, Any]:
    return {"outcome": verdict.outcome, "error": verdict.error, "note": verdict.note}


def _load(path: Path) -> Any:
    """The function `run` of a program, by the name that the installed package gives it."""
    name = f"{__package__}.{path.parent.name}.{path.stem}"
    return importlib.import_module(name).run


def main(library: str, names: list[str]) -> None:
    """Write a line after each program; where one is missing, the program killed the process."""
    out = sys.stdout
    for entry in entries(library):
        if names and f"{entry.operation}:{entry.family}" not in names:
            continue
        key = {"library": entry.library, "operation": entry.operation, "family": entry.family}
        with contextlib.redirect_stdout(io.StringIO()):
            row = run_entry(entry)
        print(END + json.dumps({**key, **row}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
