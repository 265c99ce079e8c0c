"""The page and its LaTeX table: pure functions of what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalogue import CLAIMS
from .claim import Claim, Found, Source, Verdict, counted, found, short, verdict

_HEAD = """# Published figures, measured again

Printed by `python -m crosslens.benchmarks.published`. Each row is a figure that somebody published about these
libraries: what is claimed and where, what comes out here with its 95 % interval, whether the two agree, and why not
where that can be shown. Nothing is typed but what the sources say; verdicts and reasons are computed from the
samples.

A ratio is the mean over processes (of logarithms) of each one's median ratio of paired samples: what is compared and
its baseline, one after the other in one process, in an order drawn for each pair, collection of garbage off. Its
interval is Student's, since processes differ; a row of values has their median and range instead. Rows that share a
subject share a process; TorchLens, which changes PyTorch for the whole process, has processes of its own. What is
timed was compared with an independent result before, in the same process; what is wrong has no time. A figure
*agrees* if the interval covers it to the last digit that was published. Figures that take another machine do not
carry over: where a verdict is *differs*, the next column says which part is whose."""

Row = tuple[Claim, Found, Verdict, str]


def rows(kept: Mapping[str, Any]) -> list[Row]:
    """Each row that was kept: its claim, what was found, the verdict, and why."""
    seen = {id: found(claim, kept["rows"].get(id, [])) for id, claim in CLAIMS.items()}
    out = []
    for id in (id for id in CLAIMS if id in kept["rows"]):
        claim = CLAIMS[id]
        why = claim.why(seen[id], seen) if claim.why is not None and seen[id].estimate is not None else ""
        out.append((claim, seen[id], verdict(claim, seen[id]), why))
    return out


def markdown(kept: Mapping[str, Any]) -> str:
    """The whole page."""
    every = rows(kept)
    parts = [_HEAD, _settings(kept), _summary(every)]
    sources: dict[Source, list[Row]] = {}
    for row in every:
        sources.setdefault(row[0].source, []).append(row)
    for source, some in sources.items():
        where = ", ".join(part for part in (source.place, source.version, source.date) if part)
        parts += [f"## {source.work}", f"{where}."] if source.place != "this study" else ["## Control"]
        parts += [_table(some), *_notes(some)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(kept: Mapping[str, Any]) -> str:
    machine, settings = kept["environment"], kept["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    tiny = " **Tiny models: nothing here says anything about a claim.**" if settings["tiny"] else ""
    shared = "a row" if settings["apart"] else "a group of rows, whose order is drawn for each"
    return (
        f"{machine['cpu']}, {machine['cores']['physical']} cores, no GPU used; Python {machine['python']}; {versions}. "
        f"{counted(settings['processes'], 'process', 'processes')} for {shared}.{tiny}"
    )


def _summary(every: list[Row]) -> str:
    count: dict[str, int] = {}
    for claim, _, judged, _ in every:
        if not claim.id.startswith("control."):
            count[judged.word] = count.get(judged.word, 0) + 1
    said = ", ".join(f"{number} {word}" for word, number in sorted(count.items(), key=lambda each: -each[1]))
    control = [(seen, judged) for claim, seen, judged, _ in every if claim.id.startswith("control.")]
    quiet = ""
    for seen, judged in control:
        if seen.estimate is not None:
            trusted = "so the ratios below can be trusted" if judged.word == "agrees" else (
                "**so no ratio below is to be trusted closer than that**"
            )  # fmt: skip
            quiet = f" The control, a forward against itself, gives {interval('×', seen)}, {trusted}."
    return f"{sum(count.values())} rows: {said}.{quiet}"


def _table(some: list[Row]) -> str:
    lines = ["| claimed | figure | here | verdict |", "|---|--:|--:|---|"]
    for claim, seen, judged, _ in some:
        lines.append(f"| {claim.said} | {figure(claim)} | {interval(claim.unit, seen)} | {judged.text} |")
    return "\n".join(lines)


def _notes(some: list[Row]) -> list[str]:
    """What was measured, and why it differs, row by row."""
    out = []
    for claim, seen, judged, why in some:
        if judged.word == "not measured":
            continue
        times = counted(seen.count, "value")
        if seen.bare_s is not None:
            times = f"{counted(seen.count, 'pair')} in {counted(seen.processes, 'process', 'processes')}"
        bad = counted(len(seen.errors), "process", "processes")
        failed = f" {bad} failed: {seen.errors[0]}." if seen.errors and seen.estimate else ""
        reason = f" **Why:** {why}" if why else ""
        out.append(f"*{claim.said}.* {claim.workload}; {times}.{failed}{reason}")
    return ["\n".join(f"- {each}" for each in out)] if out else []


def figure(claim: Claim) -> str:
    """What was claimed, as it was published."""
    if claim.figure is None:
        return "none"
    digits = {0.005: 2, 0.05: 1}.get(claim.half)
    number = f"{claim.figure:.{digits}f}" if digits is not None else short(claim.figure)
    lead = {"below": "< ", "up to": "up to "}.get(claim.rule, "")
    return lead + number + _unit(claim.unit)


def interval(unit: str, seen: Found) -> str:
    """The median and its interval, or the value alone where there is nothing to vary."""
    if seen.estimate is None:
        return "not measured"
    value, low, high = seen.estimate.value, seen.estimate.low, seen.estimate.high
    if low == high == value:
        return f"{short(value)}{_unit(unit)}"
    return f"{short(value)}{_unit(unit)} [{short(low)}, {short(high)}]"


def _unit(unit: str) -> str:
    return {"×": "×", "µs": " µs", "orders": " orders"}.get(unit, "")


def latex(kept: Mapping[str, Any]) -> str:
    """A booktabs table for a page of two columns: claims that were measured, by source; verdicts in a word."""
    lines = [
        r"\begin{tabular}{@{}p{0.40\linewidth}rrl@{}}", r"\toprule",
        r"claim & figure & here [95\,\% or range] & verdict \\",
    ]  # fmt: skip
    last = None
    for claim, seen, judged, _ in rows(kept):
        if judged.word == "not measured" or claim.id.startswith("control."):
            continue
        if claim.source.work != last:
            last = claim.source.work
            lines += [r"\midrule", rf"\multicolumn{{4}}{{@{{}}l}}{{\emph{{{escaped(last)}}}}} \\"]
        cells = (claim.said, figure(claim), interval(claim.unit, seen), judged.word)
        lines.append(" & ".join(map(escaped, cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "µ": r"$\mu$", "<": "$<$", ">": "$>$",
    "−": "$-$", "`": "", "*": "",
}  # fmt: skip


def escaped(text: str) -> str:
    """Plain text for LaTeX; marks of Markdown are left out."""
    return "".join(_ESCAPES.get(each, each) for each in text)
