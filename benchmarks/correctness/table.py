"""Markdown and LaTeX of what was measured: pure functions of correctness.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from crosslens.adapters.sites import BLOCK_AXES

from ..render import escape_latex
from .design import DTYPES, EDITS, MODULES, WHOLE_INPUT
from .judge import BAD, CLASSES, MARGIN, Class
from .kept import Row, rows
from .oracle import THROUGHOUT

LISTED = 150
"""Bad answers that the page lists; the JSON has all."""

_INTEGRATED, _OCCLUSION = "attribute:integrated_gradients", "attribute:occlusion"
_CAUSES = {
    _INTEGRATED: (
        "captum multiplies the gradient at each node of integrated gradients by a step size that it rounds to float32, "
        "whatever the model's dtype (`torch.tensor(step_sizes).float()` in `IntegratedGradients._attribute`, captum "
        "0.9.0), and inseq and tdhook attribute through it: in float64 half of the digits are lost."
    ),
    _OCCLUSION: (
        "inseq's occlusion is captum's `Occlusion`, whose result is rounded to float32; the captum backend takes "
        "`FeatureAblation`, which is the same without that."
    ),
}
"""Operation -> what was found to be behind float32 in float64."""

_LETTERS: dict[Class, str] = {
    "exact": "=", "noise": "~", "refused": "r", "wrong": "W", "silently wrong": "S", "error": "E",
}  # fmt: skip
_SITES = ("embed", *BLOCK_AXES, "final_norm", "logits", *MODULES, WHOLE_INPUT)
_OPERATIONS = ("capture", *EDITS, "gradients", "generate", "generate+add", "attribute")

_HEAD = """# Is it right? Every site, operation, family, dtype, attention, padding and batch

Printed by `python -m crosslens.benchmarks.correctness`. Each answer of each backend, through the Inspector, is held to
a reference that uses no hook and no library: the hand-written float64 oracle of the conformance kit for llama, gpt2 and
gpt_neox, and the model's own forward (states that it returns, embeddings that it is given, weights changed by hand,
rows alone) for seven more families. The models are tiny and random; their weights, and the values of edits, are what
bfloat16 can hold, so a cell has one right answer in all dtypes."""

_CLASSES = f"""An answer is

- **exact** (`=`): the same bits, or in float64 no further from the reference than rounding to float64 explains;
- **noise** (`~`): off by no more than rounding explains, *and* exact when the same cell is run in float64, or no more
  than one rounding to float32 off there. Rounding shrinks by 2^29 from float32 and by 2^45 from bfloat16; an error
  stays. Also a float64 answer that is exact in another arithmetic than the one asked for (below), and that of a method
  which is defined in float32 (value zeroing);
- **wrong** (`W`): off by more, or by something that stays in float64, and anybody can see it: by a shape, a dtype, a
  NaN or a warning; **silently wrong** (`S`): nothing tells;
- **refused** (`r`): an `UnsupportedError` that says why; **error** (`E`): any other exception, or the process died.

What rounding explains is measured in each cell: the reference's own forward with every site rounded to the dtype (of
families without an oracle: the model's own forward in the dtype), times {MARGIN["float64"]:g} in float64,
{MARGIN["float32"]:g} in float32 and {MARGIN["bfloat16"]:g} in bfloat16 for the operations between sites. Errors are
largest differences at real tokens over the largest magnitude there. A cosine does not see a wrong scale; the
least-squares factor beside it does."""


def markdown(kept: Mapping[str, Any]) -> str:
    """The whole page.

    Raises:
        InputError: of another schema.
    """
    found = list(rows(kept))
    names = [name for name, each in kept["backends"].items() if not each["missing"]]
    parts = [_HEAD, _run_of(kept, found), _CLASSES, _main(kept, names, found)]
    parts += ["## By site", _LEGEND, _counts(names, found, "site", _SITES, _site)]
    parts += ["## By operation", _counts(names, found, "operation", _OPERATIONS, _operation), _largest(names, found)]
    parts += ["## In another arithmetic than the one asked for", _ARITHMETIC, *_elsewhere(names, found)]
    parts += ["## All that is not exact, noise or refused", *_bad(found)]
    parts += ["## What is refused, and why", *_refused(names, found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(kept: Mapping[str, Any]) -> str:
    """The main table for one column: classes in percent of a backend's answers, and the largest error by dtype.

    Needs booktabs. Stands by itself in any document of 10 point or less whose columns are 3.3 inches wide.
    """
    found = list(rows(kept))
    lines = [r"\begingroup\small\setlength{\tabcolsep}{2.6pt}", r"\begin{tabular}{@{}lrrrrrrr@{}}", r"\toprule"]
    lines.append(r"& \multicolumn{4}{c}{answers} & \multicolumn{3}{c}{largest relative error} \\")
    lines.append(r"\cmidrule(lr){2-5}\cmidrule(l){6-8}")
    lines.append(r"backend & exact & noise & ref. & wrong & f64 & f32 & bf16 \\")
    lines.append(r"\midrule")
    for name, each in kept["backends"].items():
        own = [row for row in found if row.backend == name]
        if each["missing"]:
            lines.append(rf"{escape_latex(name)} & \multicolumn{{7}}{{l}}{{not installed}} \\")
            continue
        tally = Counter[str](row.verdict.name for row in own)
        cells = [tally["exact"], tally["noise"], tally["refused"], sum(tally[kind] for kind in BAD)]
        errors = [_power(_most(own, dtype)) for dtype in DTYPES]
        lines.append(" & ".join([escape_latex(name), *map(str, cells), *errors]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}\endgroup"]
    lines.append("% ref.: refused, once and not once a dtype. wrong: wrong, silently wrong or error.")
    return "\n".join(lines) + "\n"


def _run_of(kept: Mapping[str, Any], found: Sequence[Row]) -> str:
    cells, answers = kept["possible"]
    by_strength: dict[int, list[str]] = {}
    for name, each in kept["backends"].items():
        by_strength.setdefault(each["strength"], []).append(name)
    ran = Counter(name for name, _ in {(row.backend, row.cell) for row in found})
    said = []
    for strength, names in sorted(by_strength.items(), reverse=True):
        words = {2: "every pair", 3: "every triple"}[strength]
        most = max((ran[name] for name in names), default=0)
        said.append(f"{most} cells for {', '.join(names)}, in which {words} of levels occurs that can occur")
    text = (
        f"The full crossing has {cells} cells and {answers} answers, one a dtype, for each backend. Run were "
        f"{'; '.join(said)} (greedy covering arrays, the same each time)."
    )
    if 2 in by_strength:
        text += " Those with pairs alone, whose calls cost most, are asked in float64 and one other dtype in turn."
    return text + " A cell that is refused is asked once."


def _main(kept: Mapping[str, Any], names: Sequence[str], found: Sequence[Row]) -> str:
    table = [["backend", "library", "cells", "answers", *CLASSES, *(f"largest error, {dtype}" for dtype in DTYPES)]]
    table[0] += ["noise shrinks at least"]
    for name, each in kept["backends"].items():
        version = " ".join(filter(None, (each["library"], each["version"])))
        if name not in names:
            table.append([f"`{name}`", each["missing"], *[""] * (len(table[0]) - 2)])
            continue
        own = [row for row in found if row.backend == name]
        tally = Counter[str](row.verdict.name for row in own)
        errors = [_figure(_most(own, dtype)) for dtype in DTYPES]
        counts = [len({row.cell for row in own}), len(own), *(tally[kind] for kind in CLASSES)]
        table.append([f"`{name}`", version, *map(str, counts), *errors, _figure(_shrinks(own))])
    return _grid(table) + (
        "\n\n`largest error` is relative, over answers that are exact or noise. `noise shrinks at least`: by how much "
        "the error of a cell is smaller in float64 than in float32 or bfloat16, where it shrinks least."
    )


def _most(found: Iterable[Row], dtype: str) -> float | None:
    right = [row.verdict for row in found if row.dtype == dtype and row.verdict.name in ("exact", "noise")]
    return max((each.distance.relative for each in right if each.distance), default=None)


def _shrinks(found: Sequence[Row]) -> float | None:
    """Smallest ratio of a cell's noise to its error in float64, in the arithmetic that it is exact in."""
    double = {row.cell: row.verdict.distance for row in found if row.dtype == "float64" and row.verdict.name not in BAD}
    ratios = []
    for row in found:
        far, near = row.verdict.distance, double.get(row.cell)
        if (
            row.dtype != "float64"
            and row.verdict.name == "noise"
            and far
            and near
            and row.cell.method != "value_zeroing"
        ):
            ratios.append(far.relative / max(near.relative, 2.0**-53))
    return min(ratios, default=None)


_LEGEND = "Answers of each class: " + ", ".join(f"`{_LETTERS[kind]}` {kind}" for kind in CLASSES) + "."


def _counts(
    names: Sequence[str], found: Sequence[Row], what: str, order: Sequence[str], of: Callable[[Row], str]
) -> str:
    tallies: dict[tuple[str, str], Counter[Class]] = {}
    for row in found:
        tallies.setdefault((of(row), row.backend), Counter())[row.verdict.name] += 1
    table = [[what, *names]]
    for key in order:
        if any((key, name) in tallies for name in names):
            table.append([f"`{key}`", *(_tally(tallies.get((key, name), Counter())) for name in names)])
    return _grid(table)


def _tally(tally: Counter[Class]) -> str:
    shown = [f"{_LETTERS[kind]}{tally[kind]}" for kind in CLASSES if tally[kind]]
    return " ".join(f"**{text}**" if text[0] in "WSE" else text for text in shown)


def _site(row: Row) -> str:
    return row.cell.local


def _operation(row: Row) -> str:
    return row.cell.operation.partition(":")[0]


def _largest(names: Sequence[str], found: Sequence[Row]) -> str:
    """Largest error of right answers, operation by dtype, and where."""
    table = [["operation", *(f"largest error, {dtype}" for dtype in DTYPES), "the last of them is in"]]
    for operation in _OPERATIONS:
        own = [row for row in found if _operation(row) == operation and row.verdict.name in ("exact", "noise")]
        last = max(
            (row for row in own if row.dtype == DTYPES[-1] and row.verdict.distance),
            key=lambda row: row.verdict.distance.relative if row.verdict.distance else 0,
            default=None,
        )
        if last is not None:
            errors = [_figure(_most(own, dtype)) for dtype in DTYPES]
            table.append([f"`{operation}`", *errors, f"`{last.backend}` `{last.cell.id}`"])
    return _grid(table) if len(table) > 1 else ""


_ARITHMETIC = (
    "Hugging Face code takes some steps in float32 even in a float64 model (llama's norms, rotary tables, the softmax "
    "of eager attention), and a backend may take them otherwise. These answers are as exact as the others, but not "
    "those of the model as it was given; the difference is about 1e-7."
)


def _elsewhere(names: Sequence[str], found: Sequence[Row]) -> Iterator[str]:
    lines = []
    for name in names:
        own = [row for row in found if row.backend == name and row.dtype == "float64" and row.verdict.distance]
        for arithmetic, count in Counter(row.verdict.arithmetic for row in own if row.verdict.arithmetic).items():
            how = arithmetic if arithmetic == THROUGHOUT else f"{arithmetic} attention"
            lines.append(f"- `{name}`: {count} of {len(own)} float64 answers are those of {how}")
    yield "\n".join(lines) if lines else "None."


def _bad(found: Sequence[Row]) -> Iterator[str]:
    bad = [row for row in found if row.verdict.name in BAD]
    if not bad:
        yield "Nothing."
        return
    yield (
        "`python -m crosslens.benchmarks.correctness --backend BACKEND --only CELL` asks one of them again, and shows "
        "its figures in every dtype."
    )
    table = [["backend", "cell", "dtype", "class", "relative", "absolute", "cosine", "factor", "what"]]
    for row in bad[:LISTED]:
        far = row.verdict.distance
        figures = [f"{x:.6g}" for x in (far.relative, far.absolute, far.cosine, far.scale)] if far else [""] * 4
        what = row.verdict.why.replace("\n", " ")
        table.append([f"`{row.backend}`", f"`{row.cell.id}`", row.dtype, row.verdict.name, *figures, what])
    yield _grid(table)
    lost = {row.cell.operation for row in bad if row.dtype == "float64" and row.verdict.distance}
    yield from (cause for operation, cause in _CAUSES.items() if operation in lost)
    if len(bad) > LISTED:
        yield f"And {len(bad) - LISTED} more, in the JSON."


def _refused(names: Sequence[str], found: Sequence[Row]) -> Iterator[str]:
    lines = []
    for name in names:
        own = [row.verdict.why for row in found if row.backend == name and row.verdict.name == "refused"]
        for why, count in Counter(map(_without_site, own)).most_common():
            lines.append(f"- `{name}`, {count}: {why}")
    yield "\n".join(lines) if lines else "Nothing."


def _without_site(why: str) -> str:
    """The reason alone, the same for all sites that it holds for."""
    text = why.partition(". `crosslens backends`")[0]
    before, at, after = text.partition(" at '")
    return f"{before}{after.partition(chr(39))[2]}" if at else text


def _figure(x: float | None) -> str:
    return "" if x is None else "0" if x == 0 else f"{x:.1e}"


def _power(x: float | None) -> str:
    """`2e-15`, short enough for a column; a dash where there is none."""
    if x is None:
        return "--"
    if x == 0:
        return "0"
    digit, _, power = f"{x:.0e}".partition("e")
    return f"{digit}e${int(power)}$"


def _grid(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
