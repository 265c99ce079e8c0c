"""Markdown of what was measured: a pure function of residue.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GROUPS = ("model", "tokenizer", "process", "machine", "behaviour")
"""Of differences, in the order of the tables."""

_HEAD = """# What is left behind after one use

Printed by `python -m crosslens.benchmarks.residue`. Each use runs in a process of its own, on `tiny-llama`: it records
one residual stream and edits one output, or does the library's own job, as its documentation teaches. Then everything
that it returned is let go of, and a script that knows no library compares the model, the tokenizer, the process and the
machine with what they were before the library was imported, and does eleven everyday things with the model again, and
two with another model that was used the same way.

A number counts kinds of differences; `n (m)` is n after the clean-up that the documentation offers and m without it,
and where it offers none there is one number. The first line is the control: a forward without any library. `resident MB
kept` holds what importing takes. Code that others replaced, such as functions of PyTorch, counts as process."""


def markdown(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    uses = kept["uses"]
    directly = {name: found for name, found in uses.items() if not name.startswith("crosslens ")}
    parts = [_HEAD, _summary(uses)]
    for title, some in (("Libraries used directly", directly), ("Through crosslens", _others(uses, directly))):
        parts += [f"## {title}, kind by kind", _kinds(some), *_details(some)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _others(uses: Mapping[str, Any], some: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in uses.items() if name not in some}


def _summary(uses: Mapping[str, Any]) -> str:
    header = ["use", "version", "clean-up", "model", "tokenizer", "process", "files", "behaviours", "tensors kept"]
    rows = [[*header, "resident MB kept", "import CPU s", "import MB"]]
    for name, found in uses.items():
        cells = [name, found["version"] or "", found["cleans"] or "none"]
        if "error" in found["clean"]:
            rows.append([*cells, found["clean"]["error"], *[""] * 8])
            continue
        cells += [_both(found, lambda side, group=group: str(_number(side, group))) for group in GROUPS]
        cells += [_both(found, lambda side: str(side["figures"]["tensors kept"]))]
        cells += [_both(found, lambda side: f"{side['figures']['resident MB kept']:.0f}")]
        imported = found["import"]
        cells += [f"{imported['seconds']:.2f}", f"{imported['MB']:.0f}"] if imported else ["", ""]
        rows.append(cells)
    return _grid(rows)


def _both(found: Mapping[str, Any], figure: Any) -> str:
    """A figure after the documented clean-up, and in brackets without it where that was done apart."""
    first = figure(found["clean"])
    left = found["left"]
    if left is None or "error" in left:
        return str(first)
    return f"{first} ({figure(left)})"


def _number(side: Mapping[str, Any], group: str) -> int:
    return sum(each["group"] == group for each in side["differences"])


def _kinds(uses: Mapping[str, Any]) -> str:
    """A line a kind of difference, a column a use; how many places differ."""
    found = {
        name: {(each["group"], each["kind"]): each["count"] for each in side["differences"]}
        for name, side in _sides(uses)
    }
    kinds = sorted({key for each in found.values() for key in each}, key=lambda key: (GROUPS.index(key[0]), key[1]))
    columns = [name for name, each in found.items() if each]
    if not kinds:
        return "Nothing is different."
    rows = [["", *columns]]
    for group, kind in kinds:
        counts = [found[name].get((group, kind), 0) for name in columns]
        rows.append([f"{group}: {kind}", *[str(count) if count else "" for count in counts]])
    return _grid(rows)


def _sides(uses: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, found in uses.items():
        short = name.removeprefix("crosslens ")
        for label, side in ((short, found["clean"]), (f"{short}, not cleaned up", found["left"])):
            if side is not None and "error" not in side:
                yield label, side


def _details(uses: Mapping[str, Any]) -> Iterator[str]:
    for name, side in _sides(uses):
        lines = []
        for each in side["differences"]:
            example = each["examples"][0]
            more = f" (and {each['count'] - 1} more)" if each["count"] > 1 else ""
            what = f"`{example['place']}`: {_code(example['before'])} -> {_code(example['after'])}{more}"
            lines.append(f"- {each['group']}, {each['kind']}: {what}")
        if lines:
            yield f"**{name}**\n\n" + "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _grid(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
