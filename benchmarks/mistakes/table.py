"""The table of mistakes by library, as Markdown; a pure function of the outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .catalogue import MISTAKES
from .judge import KINDS, Outcome

HEAD = """# What happens when a library is used wrongly

Printed by `python -m crosslens.benchmarks.mistakes`: each of {mistakes} mistakes, written the way a user of the library
would write it ([the programs](../benchmarks/mistakes)), in a process of its own, on tiny models in float32 on the CPU.
The class is decided by rule (`judge.py`), never typed:

- **refused**: an exception that names what is wrong, raised before the model computes with it;
- **error**: an exception that does not name it, or one out of the model's own arithmetic;
- **warned**: a wrong result, and the console names what is wrong;
- **silent**: a wrong result without a word. The number is the damage: the largest error of what the user gets, relative
  to the largest magnitude of what was meant (by a float64 oracle that depends on no library); for tokens, the share
  that differs; "shape" or "other" where the two cannot be compared;
- **right**: what was meant, or the mistake cannot be made; with * the library's own docstring states the result, so
  that it is not counted as silent although it is not what was meant;
- n/a: the library does nothing of the kind.

`crosslens` alone is through its `hooks` backend."""


def table(outcomes: Iterable[Outcome], versions: Mapping[str, str]) -> str:
    """Counts by library; outcomes by mistake and library; and the words of every error, warning and note.

    Args:
        outcomes: of every library and mistake.
        versions: library -> version.
    """
    found = list(outcomes)
    libraries = list(versions)
    by = {(each.library, each.mistake): each for each in found}
    parts = [HEAD.format(mistakes=len(MISTAKES)), _counts(found, versions)]
    rows = [["mistake", *libraries]]
    for mistake in MISTAKES:
        rows.append([mistake.name.replace("_", " "), *(cell(by.get((lib, mistake.name))) for lib in libraries)])
    parts.append("## By mistake\n\n" + _rows(rows))
    listed = [["mistake", "what the user does", "what was meant"]]
    listed += [[m.name.replace("_", " "), m.does, m.meant] for m in MISTAKES]
    parts.append("## The mistakes\n\n" + _rows(listed))
    worst = sorted((each for each in found if each.kind == "silent"), key=lambda each: -(each.damage or 0))
    rows = [["library", "mistake", "damage", "note"]]
    rows += [[each.library, each.mistake.replace("_", " "), _damage(each), each.note] for each in worst]
    parts.append("## Silently wrong, the worst first\n\n" + _rows(rows))
    said = [["library", "mistake", "class", "in the library's words", "note"]]
    said += [
        [each.library, each.mistake.replace("_", " "), each.kind, each.says, each.note]
        for each in found
        if each.kind != "silent" and (each.says or each.note) and each.kind != "n/a"
    ]
    parts.append("## In the libraries' words\n\n" + _rows(said))
    reasons = sorted({(each.library, each.note) for each in found if each.kind == "n/a"})
    grouped = [
        [*reason, ", ".join(each.mistake.replace("_", " ") for each in found if (each.library, each.note) == reason)]
        for reason in reasons
    ]
    parts.append("## Not made\n\n" + _rows([["library", "reason", "mistakes"], *grouped]))
    return "\n\n".join(parts) + "\n"


def cell(outcome: Outcome | None) -> str:
    """One cell: the class, with the damage of a wrong result."""
    if outcome is None:
        return ""
    if outcome.kind == "silent":
        return f"**silent** {_damage(outcome)}"
    if outcome.kind == "warned":
        return f"warned {_damage(outcome)}"
    return "right *" if outcome.note.startswith("documented") else outcome.kind


def counts(outcomes: Iterable[Outcome]) -> dict[str, Counter[str]]:
    """Library -> class -> number; `documented` counts among `right`."""
    found: dict[str, Counter[str]] = {}
    for each in outcomes:
        tally = found.setdefault(each.library, Counter())
        tally[each.kind] += 1
        tally["documented"] += each.note.startswith("documented")
    return found


def _counts(outcomes: Sequence[Outcome], versions: Mapping[str, str]) -> str:
    tallies = counts(outcomes)
    rows = [["library", "version", *KINDS]]
    for library, version in versions.items():
        tally = tallies.get(library, Counter())
        starred = f" ({tally['documented']} *)" if tally["documented"] else ""
        rows.append([library, version, *(f"{tally[kind]}{starred if kind == 'right' else ''}" for kind in KINDS)])
    return "## By library\n\n" + _rows(rows, right=2)


def _damage(outcome: Outcome) -> str:
    if outcome.damage is not None:
        return f"{outcome.damage:.2g}"
    return "shape" if outcome.note.startswith("shape") else "other"


def _rows(rows: Sequence[Sequence[str]], right: int | None = None) -> str:
    """A Markdown table of a head and rows; columns from `right` on stand to the right."""
    head, *body = rows
    rule = ["--:" if right is not None and i >= right else "---" for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(str(each).replace("|", "\\|") for each in row) + " |" for row in [head, rule, *body]
    )
