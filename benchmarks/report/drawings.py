"""Maps and curves of what studies measured, each a function of the file in which the study keeps it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .blocks import Block, Cell, Figures, Heat
from .charts import Interval, Point, curves, intervals, span
from .programs import Programs

_MOST_SHOWN = 12


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_CORRECTNESS = {
    "exact": "good", "noise": "good", "refused": "none", "error": "fair", "wrong": "poor", "silently wrong": "bad",
}  # fmt: skip
_WORST = ("silently wrong", "wrong", "error", "noise", "exact", "refused")
_ALL = "all"


def _correctness(path: Path, programs: Programs) -> list[Block]:
    from crosslens.adapters.sites import BLOCK_AXES
    from crosslens.benchmarks.correctness.design import DTYPES, EDITS, MODULES, WHOLE_INPUT
    from crosslens.benchmarks.correctness.kept import rows

    kept = _read(path)
    found = list(rows(kept))
    orders = {
        "backend": list(kept["backends"]),
        "dtype": [_ALL, *DTYPES],
        "site": ["embed", *BLOCK_AXES, "final_norm", "logits", *MODULES, WHOLE_INPUT],
        "operation": ["capture", *EDITS, "gradients", "generate", "generate+add", "attribute"],
    }
    legend = {
        "good": "exact, or noise that is gone in float64",
        "fair": "an error",
        "poor": "wrong, and it shows",
        "bad": "silently wrong; the figures are bad answers of all",
        "none": "refused, with a reason",
    }
    maps = []
    for title, axes in (
        ("The worst answer of each backend", ("dtype", "operation", "backend")),
        ("The worst answer at each site and operation", ("backend", "dtype", "site", "operation")),
    ):
        groups: dict[tuple[str, ...], list[Any]] = {}
        for row in found:
            operation = row.cell.operation.partition(":")[0]
            for dtype in (_ALL, row.dtype):
                at = {"backend": row.backend, "dtype": dtype, "site": row.cell.local, "operation": operation}
                groups.setdefault(tuple(at[axis] for axis in axes), []).append(row)
        few = _MOST_SHOWN if "site" not in axes else None
        cells = [_worst(at, group, few, programs) for at, group in groups.items()]
        maps.append(Heat(title, axes, cells, legend, orders))
    return list(maps)


def _worst(at: tuple[str, ...], found: list[Any], most: int | None, programs: Programs) -> Cell:
    """The worst of some answers, and each of them, the worst first; of those over all dtypes the first alone."""
    kinds = Counter(row.verdict.name for row in found)
    worst = next(name for name in _WORST if kinds[name])
    found = sorted(found, key=lambda row: _WORST.index(row.verdict.name))
    shown = found[:1] if _ALL in at else found[:most]
    details = {"answers": ", ".join(f"{kinds[name]} {name}" for name in _WORST if kinds[name])}
    details |= {f"{row.cell.id}, {row.dtype}": _verdict(row) for row in shown}
    if len(shown) < len(found):
        details["others"] = f"{len(found) - len(shown)} more; choose a dtype and a site to see each"
    again = f"python -m crosslens.benchmarks.correctness --backend {found[0].backend} --only {found[0].cell.id}"
    key = programs.add(f"again: {', '.join(at)}", again)
    bad = sum(kinds[name] for name in ("silently wrong", "wrong", "error"))
    short = {"silently wrong": "silent", "wrong": "wrong", "error": "error"}.get(worst)
    word = f"{short} {bad}/{len(found)}" if short else worst
    return Cell(at, _CORRECTNESS[worst], word, details, [key])


def _verdict(row: Any) -> str:
    """In full where it is bad; else in short, since there are tens of thousands."""
    verdict, far = row.verdict, row.verdict.distance
    if far is None:
        return f"{verdict.name}: {verdict.why}"
    if verdict.name in ("exact", "noise"):
        return f"{verdict.name}, {far.relative:.0e}"
    return (
        f"{verdict.name}: relative error {far.relative:.2g}, cosine {far.cosine:.7g}, factor {far.scale:.7g}; rounding "
        f"of every site makes {verdict.floor:.2g}. {verdict.why}"
    )


def _overhead(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.overhead.reading import Cell as Measured
    from crosslens.benchmarks.overhead.reading import cells

    where: dict[str, dict[str, list[Measured]]] = {}
    for cell in cells(_read(path)):
        place = cell.shape if cell.device == "cpu" else f"{cell.shape}, {cell.device}"
        where.setdefault(place, {}).setdefault(cell.operation, []).append(cell)
    panels = {}
    for place, operations in where.items():
        lines = {name: [_priced(cell) for cell in found] for name, found in operations.items()}
        axis = span([v for rows in lines.values() for row in rows for v in row.figures])
        panels[place] = [
            intervals(name.replace("_", " "), rows, axis, "times the bare model") for name, rows in lines.items()
        ]
    notes = [
        "Dot, and figure: through the Inspector. Diamond: the library used directly. Lines: 95 % intervals. "
        "The panels of one shape share a logarithmic axis."
    ]
    return [Figures("Each operation to the bare model", panels, notes=notes)] if panels else []


def _priced(cell: Any) -> Interval:
    through, directly = cell.ratio("through", "bare"), cell.ratio("directly", "bare")
    return Interval.of(cell.backend, through, directly, instead=cell.why("through")[0] or "not measured")


def _scaling(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.scaling.axes import AXES
    from crosslens.benchmarks.scaling.reading import backends, curve

    kept = _read(path)
    numbers = {name: i for i, name in enumerate(backends(kept))}
    panels = []
    for axis in kept["settings"]["axes"]:
        series: dict[str, list[Point]] = {}
        for name in numbers:
            points = [(float(x), e.value, e.low, e.high) for x, e in curve(kept, name, axis).items() if e.value > 0]
            if points:
                series[name] = list(points)
        if series:
            values = [y for points in series.values() for _, y, _, _ in points]
            name = "d_model" if axis == "width" else f"{AXES[axis].unit}s"
            panels.append(
                curves(
                    f"by {axis}",
                    series,
                    x_name=name,
                    y_name="ms over bare",
                    numbers=numbers,
                    log_y=True,
                    y_axis=(min(values) / 2, max(values) * 2),
                )
            )
    notes = [
        "Milliseconds of a call beyond the bare forward of the same block, with 95 % intervals, cut at the edges. "
        "Both axes are logarithmic; a cost that is not above 0 has no place there and is left out."
    ]
    legend = {str(i): name for name, i in numbers.items()}
    return [Figures("What each further site, block or token costs", {"": panels}, legend, notes)] if panels else []


def _published(path: Path, programs: Programs) -> list[Block]:
    from crosslens.benchmarks.published.page import rows

    sources: dict[str, list[Interval]] = {}
    for claim, seen, *_ in rows(_read(path)):
        if claim.unit == "×" and seen.estimate is not None:
            line = Interval.of(claim.said.replace("`", ""), seen.estimate, reference=claim.id.startswith("control."))
            other = None if claim.figure is None else (claim.figure, None, None)
            sources.setdefault(claim.source.work, []).append(replace(line, other=other))
    axis = span([v for some in sources.values() for row in some for v in row.figures])
    panels = [intervals(work, some, axis, "times") for work, some in sources.items()]
    notes = ["Dot and line: measured here, with its 95 % interval. Diamond: what was published, where it was a figure."]
    return [Figures("Published ratios and those measured here", {"": panels}, notes=notes)] if panels else []


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


DRAWINGS: dict[str, Callable[[Path, Programs], list[Block]]] = {
    "correctness": _correctness,
    "overhead": _overhead,
    "scaling": _scaling,
    "published": _published,
    "mistakes": _mistakes,
    "idioms": _idioms,
    "residue": _residue,
    "known_truth": _known_truth,
}
"""Of a study: the file in which it keeps what was measured, and the programs of the page -> its drawings."""
