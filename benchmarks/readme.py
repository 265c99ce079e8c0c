"""The README's figures and tables, rendered from the newest run in `results/`.

python -m crosslens.benchmarks.readme           # writes them into README.md
python -m crosslens.benchmarks.readme --check   # exit status 1 where one differs

They stand between `<!-- from results: NAME -->` and `<!-- end -->`; what is outside is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crosslens.adapters import CrosslensError, InputError
from crosslens.tasks.parts import replace_file

from .columns import ratio_text
from .paper.latex import counted, words
from .paper.macros import macros
from .paper.sources import Results, newest, read
from .plan import implementation
from .summary import Summary, every_table
from .tables import Table

_BLOCK = re.compile(r"(<!-- from results: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_SHOWN = "ioi"
_TEX = (
    (r"\\texttt\{([^}]*)\}", r"`\1`"),
    (r"\\allowbreak ?", ""),
    (r"\\,", " "),
    (r"\$(-?[\d.]+)\\cdot10\^\{(-?\d+)\}\$", r"\1e\2"),
    (r"\\([&%$#_{}])", r"\1"),
)
"""What macros of the paper hold of LaTeX, and what stands for it here."""


def summary(results: Results) -> str:
    """What each backend got right over all tasks, and what a call costs."""
    (found,) = (table for table in every_table(results.run) if isinstance(table, Summary))
    lines = [["backend", "right", "cannot", "else", "ratio to plain hooks [95 %]", "over", "largest error"]]
    for row in found.rows:
        lines.append(
            [
                f"`{row.backend}`", f"{row.right}", f"{row.unsupported}", f"{row.wrong + row.other}",
                "" if row.to_hooks is None else ratio_text(row.to_hooks), f"{row.compared or ''}",
                "" if row.error is None else f"{row.error:.1e}",
            ]
        )  # fmt: skip
    return "\n".join(_grid(lines)) + "\n"


def shown_task(results: Results) -> str:
    """One of the tasks, in short."""
    (table,) = (each for each in every_table(results.run) if isinstance(each, Table) and each.task == _SHOWN)
    lines = [["backend", "result", "largest error", "ratio to bare [95 %]", "task s", "peak MB"]]
    for row in (row for row in table.rows if row.result != "unsupported"):
        lines.append(
            [
                f"`{row.backend}`", row.result, "" if row.error is None else f"{row.error:.1e}",
                "" if row.ratio is None else ratio_text(row.ratio), "" if row.task_s is None else f"{row.task_s:.1f}",
                "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            ]
        )  # fmt: skip
    return f"**{table.task}**\n\n" + "\n".join(_grid(lines)) + f"\n\n**Finding:** {table.finding}\n"


def studies(results: Results) -> str:
    """A line on each study, with where it is."""
    found = {name: plain(text) for name, text in macros(results).items()}
    where = f"results/{results.folder.name}/studies"
    lines = [
        f"- [{name}]({where}/{name}.md): {text.format_map(found)}"
        for name, text in _STUDIES.items()
        if results.studies.get(name) is not None
    ]
    return "\n".join(lines) + "\n"


_STUDIES = {
    "mistakes": "{Mistakes} mistakes that users make. Silently wrong: {SilentRanked}. crosslens refuses {RefusedOurs} "
    "and does what was meant in {RightOurs}.",
    "claims": "{Claims} silent errors ({ClaimsRanked}), each a program that says what the documentation leads one "
    "to expect, what comes out, and the right way. They run with the tests, and say when an upgrade mends "
    "one.",
    "idioms": "{Operations} operations as the shortest honest program in each library, run on two families and held "
    "to a reference. The median operation takes {LinesHooks} lines in plain hooks, {LinesOurs} in "
    "crosslens, {LinesOthers} in the others.",
    "residue": "what a documented use leaves on model, tokenizer, process and machine. Everyday uses of the model "
    "that go otherwise afterwards: {ResidueBehaviour}. Through crosslens none does, {ResidueOurs}.",
    "correctness": "{CorrectAnswers} answers of {CorrectBackends} backends, every site by operation, family, dtype, "
    "attention, padding and batch: {CorrectExact} exact, {CorrectNoise} off by rounding that vanishes in "
    "float64, {CorrectRefused} refused; bad were {CorrectBad}.",
    "overhead": "what each of {OverheadOperations} operations costs through the Inspector and in each library's own "
    "way. Recording every block's residual stream takes {OverheadLeast} to {OverheadMost} bare forwards; the Inspector "
    "{OverheadPrices} times what the library's own way takes, for the same result. Of {OverheadNulls} intervals of a "
    "backend against itself {OverheadOff} exclude 1.",
    "costs": "what key figures, `compare`, the `Recorder` and `sweep` cost, and what they stand in for.",
    "scaling": "what a call costs whatever its size, and what each further site, edit, block, token and row adds.",
    "published": "figures that others published about these libraries, measured again, with the reason where they "
    "differ.",
    "known_truth": "differences of {TruthKinds} kinds are planted, and the comparison has to find where. AUROC over "
    "places {TruthAuroc}, against {TruthRivals}; where nothing is planted it declares something in "
    "{TruthFalse} of the runs (nominal {TruthLevel}). It is beaten by {TruthLost}.",
    "coverage": "how often the intervals of the tables hold a ratio that is known, in simulated runs.",
}


def coverage(results: Results) -> str:
    """What the simulated runs say of the intervals."""
    kept = results.studies["coverage"]
    counted = kept["machines"][0]["processes_counted"]
    used = [each["used"] for each in counted if each["count"] >= 2]
    two = next(each for each in counted if each["count"] == 2)
    return (
        f"In {kept['runs']:,} simulated runs, whose processes differ by 2 %, these intervals hold the true ratio in "
        f"{min(used):.1%} to {max(used):.1%} of the cases with 2 to {counted[-1]['count']} processes, where a "
        f"percentile bootstrap holds it in {two['percentile']:.1%} with two "
        "(`python -m crosslens.benchmarks.coverage`).\n"
    )


def costs(results: Results) -> str:
    """What crosslens' own work costs; where the run does not say, how to measure it."""
    from .costs.page import sentence, summary

    kept = results.studies.get("costs")
    program = "`python -m crosslens.benchmarks.costs --out costs.md`"
    if kept is None:
        return f"What key figures, `compare`, the `Recorder` and `sweep` cost, {program} measures.\n"
    parts = [
        sentence(kept),
        f"CPU time of one thread; [all of it](results/{results.folder.name}/studies/costs.md), by {program}.\n",
    ]
    return "\n".join(filter(None, [*parts, summary(kept)]))


def features(results: Results) -> str:
    """What the kit proves of each backend."""
    from .matrix import summary as of_kit

    return of_kit(sorted(results.backends, key=lambda each: each.name != "hooks"))


def times(results: Results) -> str:
    """How long the run took, and on what."""
    arguments = results.run.facts["arguments"]
    seconds = sum(cell.get("seconds", 0.0) for cell in results.run.cells) / arguments["jobs"]
    backends = {implementation(cell["backend"]) for cell in results.run.cells if cell["backend"]}
    processes = f"{counted(arguments['repeats'], 'process', 'es')} a cell"
    return (
        f"{words(len(arguments['tasks']))} tasks on {words(len(backends))} backends, {processes}, "
        f"{counted(arguments['jobs'], 'cell', 's')} at a time: "
        f"{len(results.run.cells)} cells in {seconds / 60:.0f} minutes on {results.machine}, no GPU.\n"
    )


BLOCKS: Mapping[str, Callable[[Results], str]] = {
    "times": times, "summary": summary, "tasks": shown_task, "studies": studies, "features": features,
    "coverage": coverage, "costs": costs,
}  # fmt: skip


def rendered(text: str, results: Results) -> str:
    """The README with every block as the run has it.

    Raises:
        InputError: a block of another name.
    """

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise InputError(f"README.md has a block {match[2]!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]](results)}{match[4]}"

    return _BLOCK.sub(block, text)


def _grid(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; figures stand to the right."""
    head, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    return [head, "|" + "|".join(["---"] + ["--:"] * (len(lines[0]) - 1)) + "|", *rows]


def plain(text: str) -> str:
    """What a macro of the paper says, as Markdown."""
    for pattern, by in _TEX:
        text = re.sub(pattern, by, text)
    return text


def main(
    readme: Annotated[Path, typer.Option(help="The file.")] = Path("README.md"),
    results: Annotated[Path | None, typer.Option(help="Folder of a run; else the newest in results/.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; say whether it differs.")] = False,
) -> None:
    """Render the README's figures and tables from a run."""
    try:
        text = readme.read_text(encoding="utf-8")
        made = rendered(text, read(results or newest(Path("results"))))
        if made != text and not check:
            replace_file(readme, made.encode())
    except (CrosslensError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    if check and made != text:
        Console(stderr=True).print(f"{readme} differs from its results: python -m crosslens.benchmarks.readme")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
