"""What a run of the study keeps: one row for each cell, dtype and backend, short enough to be committed.

    {"schema": 1, "environment": {...}, "possible": [cells, answers], "backends": {name: {...}},
     "cells": [id, ...], "reasons": [text, ...],
     "rows": [[backend, cell, dtype, class, relative, absolute, cosine, scale, floor, arithmetic, part, reason], ...]}

`backend`, `cell` and `reason` are numbers in the lists above, `dtype`, `class` and `arithmetic` in `DTYPES`, `CLASSES`
and `ARITHMETICS`; a row of a refusal ends after its class and reason. An infinite figure is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from crosslens.adapters import InputError

from .asking import Distance
from .design import ATTENTIONS, DTYPES, Cell
from .judge import CLASSES, Verdict
from .oracle import THROUGHOUT

SCHEMA = 1
ARITHMETICS = ("", *ATTENTIONS, THROUGHOUT)


@dataclass(frozen=True)
class Row:
    """One verdict."""

    backend: str
    cell: Cell
    dtype: str
    verdict: Verdict


def text(
    rows: Iterable[Row], environment: Mapping[str, Any], possible: tuple[int, int], backends: Mapping[str, Any]
) -> str:
    """JSON with a row a line.

    Args:
        rows: in any order; kept in the order of backends, then as they came.
        environment: of the machine and its software.
        possible: cells of the full crossing, and answers (cells times dtypes).
        backends: name -> `library`, `version`, `missing` (why it could not be opened, or null), `strength`.
    """
    names, cells, reasons = list(backends), dict[str, int](), dict[str, int]()
    lines: list[list[Any]] = []
    for row in sorted(rows, key=lambda row: names.index(row.backend)):
        verdict, number = row.verdict, cells.setdefault(row.cell.id, len(cells))
        start = [names.index(row.backend), number, DTYPES.index(row.dtype), CLASSES.index(verdict.name)]
        why = reasons.setdefault(verdict.why, len(reasons)) if verdict.why else None
        if verdict.distance is None:
            lines.append([*start, why])
            continue
        far = verdict.distance
        figures = [_short(x) for x in (far.relative, far.absolute, far.cosine, far.scale, verdict.floor)]
        lines.append([*start, *figures, ARITHMETICS.index(verdict.arithmetic), far.part, why])
    head = {"schema": SCHEMA, "environment": environment, "possible": possible, "backends": backends}
    head |= {"cells": list(cells), "reasons": list(reasons)}
    start_ = json.dumps(head, indent=0).removesuffix("\n}")
    body = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
    return f'{start_},\n"rows": [\n{body}\n]\n}}\n'


def rows(kept: Mapping[str, Any]) -> Iterator[Row]:
    """The verdicts of what was kept.

    Raises:
        InputError: of another schema.
    """
    if kept.get("schema") != SCHEMA:
        raise InputError(f"these results have schema {kept.get('schema')!r}; this version reads {SCHEMA}")
    names, cells, reasons = list(kept["backends"]), [_cell(each) for each in kept["cells"]], kept["reasons"]
    for backend, cell, dtype, kind, *rest in kept["rows"]:
        why = "" if rest[-1] is None else reasons[rest[-1]]
        verdict = Verdict(CLASSES[kind], why=why)
        if len(rest) > 1:
            relative, absolute, cosine, scale, floor, arithmetic, part, _ = rest
            a, b, c, d = (math.inf if x is None else x for x in (relative, absolute, cosine, scale))
            verdict = Verdict(CLASSES[kind], Distance(a, b, c, d, part), floor, ARITHMETICS[arithmetic], why)
        yield Row(names[backend], cells[cell], DTYPES[dtype], verdict)


def _cell(name: str) -> Cell:
    family, site, operation, where, attention, padding, batch = name.split("/")
    return Cell(family, site, operation, where, attention, padding, int(batch))


def _short(x: float) -> float | None:
    """To what tells 1 from what is nearly 1, and no more."""
    if not math.isfinite(x):
        return None
    return float(f"{x:.7g}" if 0.9 < abs(x) < 1.1 else f"{x:.3g}")
