"""What each study of a run says: its page, and before it a map or curves of the same figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError
from crosslens.benchmarks.studies import STUDIES, pages

from . import pages as markdown
from .blocks import Block, Cell, Figures, Heat, Prose, Section, Table
from .charts import Point, curves
from .programs import Programs

ORDER = ("correctness", "overhead", "scaling", "published", "claims", "mistakes", "residue", "idioms", "known_truth")
"""Of the sections; others follow."""
_TITLES = {
    "correctness": "Correctness",
    "overhead": "Overhead",
    "scaling": "Scaling",
    "published": "Published claims",
    "claims": "Silent errors of libraries",
    "mistakes": "Mistakes",
    "residue": "What is left behind",
    "idioms": "What it takes to say it",
    "known_truth": "Known truth",
}


def sections(run: Path, programs: Programs) -> tuple[list[Section], list[str]]:
    """(a section for each study that the run holds, names of those that it does not hold).

    Raises:
        InputError: a study's file is damaged.
    """
    found = pages(run)
    folder = run / "studies"
    for path in sorted(folder.glob("*.md")) if folder.is_dir() else ():
        if path.stem not in found:  # one that another version made, or whose measurements were not kept
            try:
                found[path.stem] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path} cannot be read: {error}") from error
    names = [*(n for n in ORDER if n in found), *sorted(n for n in found if n not in ORDER)]
    made = []
    for name in names:
        title, blocks = markdown.blocks(found[name], programs)
        made.append(
            Section(name, _TITLES.get(name, title or name), _illustrated(name, folder, blocks, programs), title)
        )
    return made, [name for name in STUDIES if name not in found]


def _illustrated(name: str, folder: Path, page: Sequence[Block], programs: Programs) -> Sequence[Block]:
    """The page with drawings of its figures after its introduction."""
    kept = folder / f"{name}{STUDIES[name].kept}" if name in STUDIES else None
    if name not in _DRAWINGS or kept is None or not kept.exists():
        return page
    try:
        drawn = _DRAWINGS[name](kept, programs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{kept} cannot be drawn: {error!r}; run the study again") from error
    first = next((i for i, block in enumerate(page) if isinstance(block, Table) or _starts(block)), len(page))
    return [*page[:first], *drawn, *page[first:]]


def _starts(block: Block) -> bool:
    """Whether it is a heading."""
    return isinstance(block, Prose) and block.level > 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_MISTAKES = {"refused": "good", "right": "good", "error": "fair", "warned": "poor", "silent": "bad", "n/a": "none"}


def _mistakes(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.mistakes.catalogue import BY_NAME
    from crosslens.benchmarks.mistakes.programs import LIBRARIES

    cells = []
    for each in _read(path)["outcomes"]:
        mistake, library, kind = each["mistake"], each["library"], each["kind"]
        damage = "" if each["damage"] is None else f"{each['damage']:.2g}"
        known = BY_NAME.get(mistake)
        details = {"what the user does": known.does, "what was meant": known.meant} if known else {}
        details |= {"class": kind, "damage": damage, "in the library's words": each["says"], "note": each["note"]}
        key = programs.get(f"mistakes/{LIBRARIES[library]}.py::{mistake}") if library in LIBRARIES else None
        shown = f"silent {damage}".strip() if kind == "silent" else "" if kind == "n/a" else kind
        at = (mistake.replace("_", " "), library)
        cells.append(Cell(at, _MISTAKES[kind], shown, _told(details), [key] if key else []))
    legend = {
        "good": "refused, or right",
        "fair": "an error that does not name the mistake",
        "poor": "a wrong result with a warning",
        "bad": "silently wrong; the number is the damage",
        "none": "the library does nothing of the kind",
    }
    return [Heat("What comes of each mistake", ("mistake", "library"), cells, legend)]


_IDIOMS = {"right": "good", "wrong": "bad", "raises": "poor", "impossible": "none"}


def _idioms(path: Path, programs: Programs) -> list[Block]:
    cells = []
    for row in _read(path):
        key = programs.get(f"idioms/{row['program']}") if row["program"] else None
        right = row["outcome"] == "right"
        shown = (
            f"{row['setup_lines']}+{row['operation_lines']}"
            if right
            else {"raises": "fails", "wrong": "wrong"}.get(row["outcome"], "")
        )
        details = {
            "outcome": row["outcome"],
            "largest error": "" if row["error"] is None else f"{row['error']:.1e}",
            "reason": row["reason"],
            "note": row["note"],
            "documentation": row.get("documentation", ""),
        }
        if row["program"]:
            details |= {
                "logical lines": f"{row['setup_lines']} of set-up, {row['operation_lines']} of the operation",
                "tokens": f"{row['setup_tokens']} and {row['operation_tokens']}",
                "names of the library": ", ".join(row["names"]),
                "names of the architecture": ", ".join(row["architecture"]),
            }
        at = (row["family"] or "any", row["operation"].replace("_", " "), row["library"])
        cells.append(Cell(at, _IDIOMS[row["outcome"]], shown, _told(details), [key] if key else []))
    legend = {
        "good": "right; logical lines of set-up + operation",
        "poor": "fails",
        "bad": "wrong",
        "none": "cannot be said",
    }
    return [Heat("Lines of each operation", ("family", "operation", "library"), cells, legend)]


def _residue(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.residue.table import GROUPS

    cells = []
    for use, found in _read(path)["uses"].items():
        for when, side in (
            ("after its own clean-up", found["clean"]),
            ("without clean-up", found["left"] or found["clean"]),
        ):
            for group in GROUPS:
                cells.append(_left(when, use, group, found, side))
    legend = {
        "good": "nothing is left",
        "bad": "kinds of differences that are left",
        "poor": "the use ended in an error",
    }
    return [Heat("What each use leaves behind", ("when", "use", "where"), cells, legend)]


def _left(when: str, use: str, group: str, found: Mapping[str, Any], side: Mapping[str, Any]) -> Cell:
    at = (when, use, {"machine": "files"}.get(group, group))
    if "error" in side:
        return Cell(at, "poor", "error", _told({"error": str(side["error"])}))
    mine = [each for each in side["differences"] if each["group"] == group]
    details = {"follows": found["follows"], "clean-up": found["cleans"] or "none is documented"}
    for each in mine:
        examples = [f"{x['place']}: {x['before']} → {x['after']}" for x in each["examples"]]
        details[each["kind"]] = "\n".join(
            [f"{each['count']}, such as", *examples] if examples else [str(each["count"])]
        )
    return Cell(at, "bad" if mine else "good", str(len(mine)), _told(details))


def _known_truth(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.known_truth_tables import NULLS, as_table, averages

    _, *records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    table = as_table(records)
    planted = averages(table[~table["kind"].isin(NULLS)])
    ways = {str(way): i for i, way in enumerate(planted["way"].unique())}
    panels: dict[str, list[Any]] = {}
    for figure, name in (("power", "power"), ("auroc", "AUROC"), ("first", "first place named")):
        for n in sorted(planted["n"].unique(), reverse=True):
            drawn = []
            for kind, group in planted[planted["n"] == n].groupby("kind", sort=False):
                series: dict[str, list[Point]] = {way: [] for way in ways}
                for row in group.sort_values("size").to_dict("records"):
                    point = (row["size"], row[figure], row[f"{figure}_low"], row[f"{figure}_high"])
                    series[str(row["way"])].append(point)
                few = {way: points for way, points in series.items() if points}
                drawn.append(
                    curves(str(kind), few, x_name="size of the difference", y_name=name, y_axis=(0, 1), numbers=ways)
                )
            panels[f"{name}, {n} examples of each category"] = drawn
    notes = [
        "Mean over seeds, with 95 % intervals by Student's t. Power: share of the affected places that are declared. "
        "AUROC: of the ranking, affected places against the others; 0.5 is chance. First place named: how often the "
        "first place declared is the first affected."
    ]
    legend = {str(i): way for way, i in ways.items()}
    return [Figures("Who finds a planted difference", panels, legend, notes)]


def _told(details: Mapping[str, Any]) -> dict[str, str]:
    """Those that say something."""
    return {name: str(text) for name, text in details.items() if text not in ("", None)}


_DRAWINGS: dict[str, Callable[[Path, Programs], list[Block]]] = {
    "mistakes": _mistakes,
    "idioms": _idioms,
    "residue": _residue,
    "known_truth": _known_truth,
}
