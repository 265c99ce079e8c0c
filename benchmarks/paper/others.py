"""Tables and numbers of the studies that say by themselves how LaTeX shows them: correctness, costs, published figures.

Each has a function `latex(kept)` that gives a tabular; here it gets a caption that says what was run, on what and how
often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from .latex import escape_latex, floating, listed, name, words

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
    return floating("correctness", caption, latex_of("correctness", kept))


def correctness_macros(kept: Mapping[str, Any]) -> Macros:
    """Of the answers."""
    from ..correctness.judge import BAD
    from ..correctness.kept import rows

    found = list(rows(kept))
    tally = Counter(row.verdict.name for row in found)
    bad = Counter(row.backend for row in found if row.verdict.name in BAD)
    named = listed(f"{name(each)} {count:,}" for each, count in bad.most_common())
    return {
        "CorrectAnswers": f"{len(found):,}",
        "CorrectBackends": words(len({row.backend for row in found})),
        "CorrectExact": f"{tally['exact']:,}",
        "CorrectNoise": f"{tally['noise']:,}",
        "CorrectRefused": f"{tally['refused']:,}",
        "CorrectBad": f"{sum(bad.values()):,} ({named})" if bad else "no other",
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
    from ..published.page import rows

    every = [row for row in rows(kept) if not row[0].id.startswith("control.")]
    measured = [row for row in every if row[2].word != "not measured"]
    tally = Counter(row[2].word for row in measured)
    return {
        "PublishedRows": f"{len(measured)}",
        "PublishedElsewhere": f"{len(every) - len(measured)}",
        "PublishedSources": words(len({row[0].source.work for row in measured})),
        "PublishedVerdicts": listed(f"{word} {count}" for word, count in tally.most_common()),
    }


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
