"""Tables and numbers of the studies that say by themselves how LaTeX shows them: correctness, costs, published figures.

Each has a function `latex(kept)` that gives a tabular; here it gets a caption that says what was run, on what and how
often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ..render import escape_latex
from .latex import counted, floating, listed, name, words

Macros = dict[str, str]


def machine(kept: Mapping[str, Any]) -> str:
    """Such as `an AMD EPYC with 2 cores, torch 2.13.0`."""
    found = kept["environment"]
    cores = found["cores"]["physical"] or found["cores"]["logical"]
    article = "an" if found["cpu"][:1].lower() in "aeiou" else "a"
    torch = str(found["versions"]["torch"]).partition("+")[0]
    return escape_latex(f"{article} {found['cpu']} with {cores} cores, torch {torch}")


def correctness(kept: Mapping[str, Any]) -> str:
    """Classes of answers and largest errors, by backend."""
    cells, possible = kept["possible"]
    caption = (
        r"\textbf{Is it right?} Answers of each backend, through the Inspector, by class. A cell is a site, "
        f"operation, family, attention implementation, padding and batch; of {cells:,} that there are ({possible:,} "
        "answers, one a dtype) covering arrays were run in which all pairs or triples of levels occur, on tiny "
        r"random models. \emph{Noise}: off by no more than rounding explains, and exact when the same cell is run "
        r"in float64. \emph{Refused}: an error that says why, before the model runs. \emph{Wrong}: wrong, "
        f"silently wrong, or any other error. Each cell was asked once a dtype, on {machine(kept)}."
    )
    body = latex_of("correctness", kept).replace(r"\small\setlength{\tabcolsep}{2.6pt}", "")
    return floating("correctness", caption, body, size="scriptsize", gap=2)


def correctness_macros(kept: Mapping[str, Any]) -> Macros:
    """Of the answers."""
    from ..correctness.judge import BAD, SHORT
    from ..correctness.kept import rows

    found = list(rows(kept))
    tally = Counter(row.verdict.name for row in found)
    wrong = [row for row in found if row.verdict.name in BAD]
    bad = Counter(row.backend for row in wrong)
    short = sum(SHORT in row.verdict.why for row in wrong)
    which = "each of them" if short == len(wrong) else f"{short:,} of them"
    only = f", {which} no further off, in a float64 model, than {SHORT}" if short else ""
    named = listed([f"{name(each)} {count:,}" for each, count in bad.most_common(3)] + ["others"] * (len(bad) > 3))
    return {
        "CorrectAnswers": f"{len(found):,}",
        "CorrectBackends": words(len({row.backend for row in found})),
        "CorrectExact": f"{tally['exact']:,}",
        "CorrectNoise": f"{tally['noise']:,}",
        "CorrectRefused": f"{tally['refused']:,}",
        "CorrectBad": f"{len(wrong):,} ({named}){only}" if wrong else "no other",
    }


def published(kept: Mapping[str, Any]) -> str:
    """Each published figure that could be measured: claimed, here, verdict."""
    settings = kept["settings"]
    caption = (
        r"\textbf{Published figures, measured again.} What is claimed and where, what comes out here, and whether "
        "the two agree: a figure agrees if the interval covers it to the last digit that was published. A ratio is "
        f"the mean over {settings['processes']} processes of each one's median of paired samples with Student's "
        rf"95\,\% interval; of values, the median and range. On {machine(kept)}, no accelerator. Figures of other "
        "machines need not carry over."
    )
    return floating("published", caption, latex_of("published", kept), wide=True, size="scriptsize")


def published_macros(kept: Mapping[str, Any]) -> Macros:
    """Of the verdicts."""
    from ..published.catalogue import CLAIMS
    from ..published.page import rows

    every = [row for row in rows(kept) if not row[0].id.startswith("control.")]
    measured = [row for row in every if row[2].word != "not measured"]
    tally = Counter(row[2].word for row in measured)
    return {
        "PublishedRows": f"{len(measured)}",
        "PublishedElsewhere": words(sum(claim.measure is None for claim in CLAIMS.values())),
        "PublishedSources": words(len({row[0].source.work for row in measured})),
        "PublishedVerdicts": listed(f"{word} {count}" for word, count in tally.most_common()),
    }


def overhead(kept: Mapping[str, Any]) -> str:
    """Ratios to the bare model, by backend and operation, on the first shape."""
    from ..overhead.table import control_note

    settings = kept["settings"]
    shape = settings["shapes"][0]
    processes = settings["processes"]
    interval = (
        f"the geometric mean over {processes} processes of each one's median over blocks; in brackets, in units of the "
        r"last digits, the wider side of Student's 95\,\% interval over processes"
        if processes > 1
        else r"the median over the blocks of one process; in brackets, in units of the last digits, the wider side of "
        r"its 95\,\% interval, which says nothing of how processes differ"
    )
    caption = (
        r"\textbf{What operations cost} through the Inspector: ratio to the bare model in the same block, "
        f"{interval}. On {escape_latex(settings['model'])}, {shape['batch']} by {shape['tokens']} tokens, float32, "
        f"{counted(settings['threads'], 'thread', 's')}, {machine(kept)}. -- is not done, or wrong, and then has no "
        f"time. {escape_latex(control_note(kept))}"
    )
    return floating("overhead", caption, latex_of("overhead", kept), size="scriptsize", gap=2)


def overhead_macros(kept: Mapping[str, Any]) -> Macros:
    """Of what operations cost; of no backend where none has a time."""
    from ..overhead.operations import OPERATIONS
    from ..overhead.reading import cells, controls, together

    settings = kept["settings"]
    shape = settings["shapes"][0]["name"]
    every = [each for each in cells(kept) if each.device == "cpu"]
    residuals = {
        each.backend: ratio
        for each in every
        if each.operation == "capture_residuals" and each.shape == shape
        if (ratio := each.ratio("through", "bare")) is not None
    }
    order = sorted(residuals, key=lambda each: residuals[each].value)
    shown = {
        each: f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] ({name(each)})"
        for each, ratio in residuals.items()
    }
    free = [each for each in order if residuals[each].covers(1.0)]
    by = {each.backend: [one for one in every if one.backend == each.backend] for each in every}
    priced = {each: [one for one in found if one.ratio("through", "directly")] for each, found in by.items()}
    prices = {each: together(found, "through", "directly") for each, found in priced.items() if found}
    values = sorted(price.value for price in prices.values() if price is not None)
    nulls = controls(kept)
    return {
        "OverheadOperations": f"{len(OPERATIONS)}",
        "OverheadBackends": words(len(by)),
        "OverheadModel": escape_latex(settings["model"]),
        "OverheadLeast": shown[order[0]] if order else "nothing",
        "OverheadMost": shown[order[-1]] if order else "nothing",
        "OverheadFree": listed(name(each) for each in free) or "none of them",
        "OverheadPrices": f"{values[0]:.2f} to {values[-1]:.2f}" if values else "an unknown number of",
        "OverheadNulls": f"{len(nulls)}",
        "OverheadOff": f"{sum(not each.covers(1.0) for each in nulls.values())}",
    }


def costs_macros(kept: Mapping[str, Any]) -> Macros:
    """Of what `sweep`, `compare` and the `Recorder` take, beside what they stand in for."""
    from ..costs.page import COMGRA, SAME, by, fastest_loop, of_part, shown

    kept = dict(kept)
    compared, unknown = of_part(kept, "compare"), "an unknown number of"
    found = {
        "CompareSites": f"{compared[0]['kinds'] * compared[0]['blocks']}" if compared else unknown,
        "CompareCost": shown(compared, "compare", "bare") if compared else unknown,
    }
    maps = by(of_part(kept, "sweep"), "maps", "local")
    for macro, local in (("Sweep", "resid_post"), ("SweepHeads", "attn.z")):
        each = maps.get(local)
        found[f"{macro}Edits"] = f"{each[0]['layers'] * each[0]['inner']}" if each else unknown
        found[f"{macro}Faster"] = shown(each, fastest_loop(each), "sweep, hooks") if each else unknown
    loop = next(iter(by(of_part(kept, "recorder"), "loops", "name").values()), None)
    for macro, way in (("RecorderCost", SAME), ("RecorderComgra", COMGRA)):
        found[macro] = shown(loop, way, "bare") if loop and way in loop[0]["samples"] else unknown
    return found


def scaling(kept: Mapping[str, Any]) -> str:
    """Fixed and marginal costs, by backend."""
    settings = kept["settings"]
    several = settings["processes"] > 1
    spread = "Student's over processes" if several else "the bootstrap's over the samples of its one process"
    caption = (
        r"\textbf{How costs grow.} Milliseconds beyond the bare forward that a call through the Inspector takes "
        "whatever its size, and what each further recorded site, block and edit adds: lines fitted (Theil--Sen) to "
        f"{settings['samples']} samples a point in {counted(settings['processes'], 'process', 'es')}, with the wider "
        rf"half of their 95\,\% intervals, which are {spread}. Seeded llamas made for it, float32, "
        f"{counted(settings['threads'], 'thread', 's')}, {machine(kept)}."
    )
    body = latex_of("scaling", kept)
    if "& --" in body:
        caption += " -- had too few points in its time for a line."
    return floating("scaling", caption, body, size="scriptsize", gap=2)


def scaling_macros(kept: Mapping[str, Any]) -> Macros:
    """Of how costs grow with sites, and memory with calls."""
    from ..scaling.reading import backends, grown, line

    lines = {each: found for each in backends(kept) if (found := line(kept, each, "sites")) is not None}
    growing = {}
    for each in backends(kept):
        growth = [grown(kept, each, what) for what in ("bytes", "objects")]
        growing[each] = any(one is not None and one.low > 0 for one in growth)
    fixed = {each: one.fixed.value for each, one in lines.items()}
    site = {each: 1e3 * one.marginal.value for each, one in lines.items()}
    return {
        "ScalingBackends": words(len(growing)),
        "ScalingFixed": _extremes(fixed),
        "ScalingSite": _extremes(site),
        "ScalingCalls": f"{kept['settings']['calls']}",
        "ScalingGrows": listed(name(each) for each, grows in growing.items() if grows) or "no backend",
    }


def _extremes(values: Mapping[str, float]) -> str:
    """Such as `0.12 (plain hooks) to 31 (TorchLens)`."""
    if not values:
        return "an unknown number of"
    least, most = min(values, key=lambda each: values[each]), max(values, key=lambda each: values[each])
    ends = (f"{values[each]:{',.0f' if values[each] >= 1000 else '.3g'}} ({name(each)})" for each in (least, most))
    return " to ".join(ends)


def latex_of(study: str, kept: Any) -> str:
    """What a study's own function makes of it, wherever in its package that lies."""
    for module in ("", ".page", ".table", ".tables"):
        try:
            found = import_module(f"crosslens.benchmarks.{study}{module}")
        except ModuleNotFoundError:
            continue
        if hasattr(found, "latex"):
            return str(found.latex(kept))
    raise AssertionError(f"crosslens.benchmarks.{study} has no latex()")
