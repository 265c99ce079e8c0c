"""The table of idioms: operations by library, with what is wrong or impossible in sight, and what it takes to say each.

Everything here is a function of the rows that `running.rows` gives and `results/idioms.json` keeps.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .operations import OPERATIONS, families

Row = dict[str, Any]

SIGNS = {"right": "", "wrong": "wrong", "raises": "fails", "impossible": "—"}
_SUMMARY = (
    ("right", "right"), ("wrong", "wrong"), ("raises", "fails"), ("impossible", "no way"),
)  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The whole page."""
    return "\n\n".join([_INTRODUCTION, _grid(rows), _READING, _summary(rows), _failures(rows), _programs(rows)]) + "\n"


def cell(rows: Sequence[Row]) -> str:
    """One operation in one library: lines of set-up + operation, and the distance to the other family's text."""
    good = [row for row in rows if row["outcome"] == "right"]
    bad = {row["family"]: SIGNS[row["outcome"]] for row in rows if row["outcome"] != "right"}
    if not good:
        return " / ".join(dict.fromkeys(bad.values()))
    shown = f"{good[0]['setup_lines']}+{good[0]['operation_lines']}"
    if bad:
        return f"{shown}, {', '.join(f'{family}: {sign}' for family, sign in bad.items())}"
    distance = good[0].get("distance")
    return shown if distance is None else f"{shown} Δ{distance}"


def libraries(rows: Sequence[Row]) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(row["library"] for row in rows))


def of(rows: Sequence[Row], library: str, operation: str = "") -> list[Row]:
    """The rows of one library, and of one operation if one is named."""
    return [row for row in rows if row["library"] == library and operation in ("", row["operation"])]


def summary(rows: Sequence[Row], library: str) -> dict[str, Any]:
    """Counts of outcomes over operations and families; medians over the programs that are right."""
    mine = of(rows, library)
    good = [row for row in mine if row["outcome"] == "right"]
    changed = [row["distance"] for row in good if row["family"] == "llama" and row.get("distance") is not None]

    def middle(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    return {
        **{name: sum(row["outcome"] == name for row in mine) for name, _ in _SUMMARY},
        "set-up lines": middle([row["setup_lines"] for row in good]),
        "operation lines": middle([row["operation_lines"] for row in good]),
        "tokens": middle([row["setup_tokens"] + row["operation_tokens"] for row in good]),
        "set-up share": middle([row["setup_tokens"] / (row["setup_tokens"] + row["operation_tokens"]) for row in good]),
        "names": middle([len(row["names"]) for row in good]),
        "names in all": len({name for row in good for name in row["names"]}),
        "architecture": middle([len(row["architecture"]) for row in good]),
        "nesting": middle([row["nesting"] for row in good]),
        "changed": middle(changed),
    }


def _grid(rows: Sequence[Row]) -> str:
    names = libraries(rows)
    head = ["| operation | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    body = [
        f"| {operation} | " + " | ".join(cell(of(rows, name, operation)) or " " for name in names) + " |"
        for operation in OPERATIONS
    ]
    return "\n".join([*head, *body])


def _summary(rows: Sequence[Row]) -> str:
    table = {name: summary(rows, name) for name in libraries(rows)}
    columns = list(next(iter(table.values())))
    titles = dict(_SUMMARY)
    head = ["| library | " + " | ".join(titles.get(c, c) for c in columns) + " |", "|---" + "|--:" * len(columns) + "|"]
    body = [f"| {_versioned(rows, name)} | " + " | ".join(_number(v) for v in each.values()) + " |"
            for name, each in table.items()]  # fmt: skip
    cells = sum(len(families(name)) for name in OPERATIONS)
    title = f"## By library\n\nOf {cells} operations and families each.\n\n{_COLUMNS}\n"
    return "\n".join([title, *head, *body])


def _failures(rows: Sequence[Row]) -> str:
    lines = [
        "## What is wrong or impossible, and why\n",
        "| library | operation | family | outcome | reason |",
        "|---" * 5 + "|",
    ]
    seen: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        if row["outcome"] != "right":
            reason = row["reason"] or row["note"]
            if row["outcome"] in ("wrong", "raises") and row["note"] and row["note"] not in reason:
                reason = f"{reason} ({row['note']})"
            seen.setdefault((row["library"], row["operation"], row["outcome"], reason), []).append(row["family"])
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for (library, operation, outcome, reason), found in seen.items():
        if operation == "any_module":
            found = ["any"]
        merged.setdefault((library, outcome, reason, ", ".join(found)), []).append(operation)
    for (library, outcome, reason, which), operations in merged.items():
        cells = [library, ", ".join(operations), which, SIGNS[outcome] if outcome != "impossible" else "no way", reason]
        lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
    return "\n".join(lines)


def _programs(rows: Sequence[Row]) -> str:
    lines = ["## Every program\n",
             "| library | operation | family | outcome | error | set-up + operation, lines | tokens | names | "
             "architecture | nesting | program and documentation |", "|---" * 11 + "|"]  # fmt: skip
    for row in rows:
        if not row["program"]:
            continue
        family = "any" if row["operation"] == "any_module" else row["family"]
        error = "" if row["error"] is None else f"{row['error']:.1g}"
        link = f"[{row['program']}](../benchmarks/idioms/{row['program']}): {row['documentation']}"
        cells = [
            row["library"], row["operation"], family, SIGNS[row["outcome"]] or "right", error,
            f"{row['setup_lines']} + {row['operation_lines']}", f"{row['setup_tokens']} + {row['operation_tokens']}",
            len(row["names"]), ", ".join(row["architecture"]), row["nesting"], link,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(each).replace("|", "\\|") for each in cells) + " |")
    return "\n".join(lines)


def _versioned(rows: Sequence[Row], library: str) -> str:
    version = of(rows, library)[0]["version"]
    return f"{library} {version}" if version else library


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if 0 < value < 1 else f"{value:g}"


_INTRODUCTION = """# What it takes to say it

Printed by `python -m crosslens.benchmarks.idioms`. Each cell is a program in `benchmarks/idioms/`: the shortest
honest solution in that library, used directly as its own documentation teaches, run on a tiny llama and a tiny gpt2
in a process of the library's own, and held to a float64 reference that no library has a part in (to 1e-4 of its
largest value; where the operation is left out, the result is off by hundreds of times that)."""

_READING = """A cell is the logical lines of the set-up (imports, wrapping) + those of the operation. Δ is how many
words and signs change from llama to gpt2, where both are right: 0 where one text serves both. `wrong` returned
something else than was asked for, `fails` ended in an error, — has no way to say it; the reasons are below.
`any_module`, a network of one's own, has no family."""

_COLUMNS = """Outcomes are counted over operations and families. The other columns are of the programs that are
right: medians of logical lines, of tokens, of the share of tokens that is set-up, of distinct names of the library
that one has to know (for `hooks`, of `torch.nn.Module` and gradients) and their number in all programs together, of
names of modules that only this family has, of how deep statements lie in one another, and of the words and signs
that change with the family."""
