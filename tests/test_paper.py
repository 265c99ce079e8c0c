"""The paper: no number is typed, what is generated is what the results say, and LaTeX builds it whatever studies "
"there are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from crosslens.adapters import InputError
from crosslens.benchmarks.cli import app
from crosslens.benchmarks.environment import environment
from crosslens.benchmarks.paper import figures, generate, latex, proof, sources
from crosslens.benchmarks.paper.check import check
from crosslens.benchmarks.paper.macros import SWITCHES
from crosslens.benchmarks.paper.scanner import WORDS, read_names, typed
from crosslens.benchmarks.paper.sources import Results
from crosslens.benchmarks.paper.tex import live, prose
from crosslens.benchmarks.store import RunFolder

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "paper"
NAMES = ["GPT-2", "SmolLM2-135M", "float64", "one word"]
ARGUMENTS = {
    "suite": "default", "backends": ["hooks", "nnsight"], "skipped": {}, "tasks": ["ioi", "steering"],
    "models": ["tiny-llama"], "repeats": 2, "jobs": 1, "threads": 1, "dtype": "float32", "attn_implementation": "sdpa",
}  # fmt: skip
SCORE = {
    "max_abs_error": 1e-6, "max_rel_error": 2e-7, "rank_agreement": 1.0, "effect": 9.0, "noise": 1e-7, "right": True,
}  # fmt: skip


# ---- numbers that are typed


@pytest.mark.parametrize(
    "text",
    [
        "We ran 12 models.", r"a ratio of 1.05", r"\emph{three} times", r"\textbf{Forty} runs", "50\\% of them",
        "$g=2.1$",
        r"\newcommand{\mine}{42}", r"\newcommand{\mine}[1]{#1 of 42}", r"\footnote{half}", r"\caption{About 2,000 "
        r"texts}",
        r"\begin{quote}{7 times}\end{quote}", r"\section{Twelve tasks}", r"GPT-25", r"SmolLM2-135M2", r"GPT-2.5",
        "2-GPT-2",
        r"\texttt{blocks.7.attn.z}", r"a\\[2pt]b9", r"\ifhasclaims 1 \else x \fi", r"\ifhasclaims x \else 2 \fi",
        "one  wordy", "thirty-one", "a dozen", r"\resFoo 3", r"50\% % 60", "none of them",
        "x\\\\% not 9\n8", r"\'e1",
    ],
)  # fmt: skip
def test_a_typed_number_is_found(text: str) -> None:
    assert len(typed(text, NAMES)) == 1, typed(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        r"\documentclass[10pt,a4paper]{article}", "words % 12 in a comment", r"\cite{a2020,b2021} and \citep[x]{c3}",
        r"\label{tab:1} \ref{tab:1}", r"\vspace{-3mm}\hspace*{2em}", 
        r"\begin{minipage}[t]{0.6\textwidth}x\end{minipage}",
        r"a\\[2pt] b\\*[-1em] c", "GPT-2 and SmolLM2-135M in float64", "in one\nword", r"\resFoo{} of \resBar models",
        r"\includegraphics[width=0.9\linewidth]{generated/figures/a1}",
        r"\newcommand{\pair}[2]{#1 and #2}",
        r"\setlength{\tabcolsep}{3pt}\setcounter{page}{7}", r"\renewcommand{\topfraction}{0.95}", "often, someone, "
        r"tense",
        r"\begin{tabular}{@{}lp{0.8\textwidth}@{}} a & b \end{tabular}", r"\pdfinfoomitdate=1 yes",
        r"\url{http://a.b/c9}",
        r"\fontsize{9}{10}\selectfont", r"\input{generated/tables/a1}", "gpt-2", r"\textcolor{black!65}{grey}",
    ],
)  # fmt: skip
def test_what_is_no_number_of_the_text_is_not(text: str) -> None:
    assert typed(text, NAMES) == []


WORD = st.sampled_from(["the", r"\emph{agree}", r"\resMistakes", "(a note)", r"\cite{a9}", "% 7\n", "GPT-2"])


@given(before=st.lists(WORD), number=st.integers(0, 10**6) | st.sampled_from(sorted(WORDS)), after=st.lists(WORD))
def test_a_number_is_found_wherever_it_stands(before: list[str], number: Any, after: list[str]) -> None:
    plain = " ".join([*before, "here", *after])
    assert typed(plain, NAMES) == []
    text = " ".join([*before, str(number), *after])
    found = typed(text, NAMES)
    assert [each.text for each in found] == [str(number)]
    assert found[0].line == " ".join(before).count("\n") + 1


@given(st.text(alphabet="ab {}[]\\%$\n&#12_", max_size=60))
def test_any_text_is_read_at_its_length(text: str) -> None:
    assert len(prose(text)) == len(text)
    assert prose(text).count("\n") == text.count("\n")


def test_a_branch_that_is_not_taken_is_no_part_of_the_text() -> None:
    text = r"a \ifhasx b \ifhasy c \else d \fi \else e \fi f % \ifhasz"
    assert " ".join(live(text, ["x"]).split()) == r"a \ifhasx b \ifhasy \else d \fi \else \fi f"
    assert " ".join(live(text, []).split()) == r"a \ifhasx \else e \fi f"
    for wrong in (r"\ifhasx a", r"a \fi", r"\ifhasx a \else b"):
        with pytest.raises(ValueError, match="line 1"):
            live(wrong, [])


def test_a_bare_number_is_no_name(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("# names\nGPT-2\n\nfloat64\n")
    assert read_names(path) == ["GPT-2", "float64"]
    for bad in ("42", "7.5 %", "three", "44 mistakes"):
        path.write_text(f"GPT-2\n{bad}\n")
        with pytest.raises(InputError, match="line 2"):
            read_names(path)
    with pytest.raises(InputError, match=r"nothing\.txt"):
        read_names(tmp_path / "nothing.txt")


# ---- a run, small


def cell(task: str, backend: str | None, repeat: int) -> dict[str, Any]:
    end = "reference" if backend is None else f"{backend}.{repeat}"
    return {
        "id": f"{task}.tiny-llama.{end}", "kind": "backend" if backend else "reference", "backend": backend,
        "task": task, "model": "tiny-llama", "repeat": repeat, "status": "right" if backend else "done", "reason": None,
        "figures": {"task_s": 1.0}, "score": SCORE, "version": "1.2.3", "headline": "layer 7",
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks, with the committed studies; of the planted differences few seeds."""
    path = tmp_path_factory.mktemp("results") / "small"
    ran = [(None, 1), *((backend, repeat) for backend in ("hooks", "nnsight") for repeat in (1, 2))]
    cells = [cell(task, backend, repeat) for task in ("ioi", "steering") for backend, repeat in ran]
    facts = {
        "arguments": ARGUMENTS, "environment": environment([]), "random_models": [],
        "cells": [each["id"] for each in cells], "started": "2026-11-26T02:24:59+00:00",
    }  # fmt: skip
    folder = RunFolder(path, facts)
    for each in cells:
        hooks = {"hooks_s": 1.0} if each["backend"] else {}
        pairs = [{"order": "bare,step", "bare_s": 1.0, "step_s": 1.0 + 0.001 * i, **hooks} for i in range(-5, 6)]
        folder.add(each, pairs, folder.scratch(each["id"]))
    folder.close()
    (path / "studies").mkdir()
    for kept in (sorted((ROOT / "results").glob("*/run.json"))[-1].parent / "studies").glob("*.json*"):
        text = kept.read_text(encoding="utf-8")
        if kept.name == "known_truth.jsonl":
            first, *rest = text.splitlines()
            text = "\n".join([first, *(line for line in rest if json.loads(line)["seed"] % 100 < 2)]) + "\n"
        if kept.name == "correctness.json":
            answers = json.loads(text)
            text = json.dumps({**answers, "rows": answers["rows"][::20]})
        (path / "studies" / kept.name).write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    return sources.read(run)


@pytest.fixture(scope="module")
def made(results: Results) -> dict[str, bytes]:
    return generate.generated(results)


@pytest.fixture
def paper(tmp_path: Path, made: dict[str, bytes]) -> Path:
    """The paper's own sources, with what is generated from the small run."""
    path = tmp_path / "paper"
    shutil.copytree(PAPER, path, ignore=shutil.ignore_patterns("build", "generated"))
    generate.write(made, path)
    return path


def without(results: Results, *studies: str) -> Results:
    kept = {name: each for name, each in results.studies.items() if name not in studies}
    return Results(results.folder, results.run, kept, results.backends)


def remade(results: Results, made: dict[str, bytes]) -> dict[str, bytes]:
    """What is generated; figures, which take a second to draw, are those that there are already."""
    drawn = {Path(file).stem: data for file, data in made.items() if file.endswith(".pdf")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "render", lambda each: drawn if "stories" in each.studies else {})
        return generate.generated(results)


# ---- what is generated


def test_the_paper_says_what_the_results_say(made: dict[str, bytes], paper: Path) -> None:
    assert check(made, paper) == []


@pytest.mark.parametrize("study", [*SWITCHES, "all"])
def test_a_study_that_is_not_there_leaves_its_part_out(
    results: Results, made: dict[str, bytes], paper: Path, study: str
) -> None:
    fewer = remade(without(results, *(SWITCHES if study == "all" else [study])), made)
    generate.write(fewer, paper)
    assert check(fewer, paper) == []


def test_what_differs_from_the_results_is_found(made: dict[str, bytes], paper: Path) -> None:
    table, macros = paper / "generated/tables/mistakes.tex", paper / "generated/macros.tex"
    table.write_text(table.read_text().replace("nnsight & 11", "nnsight & 12", 1))
    macros.write_text(macros.read_text().replace(r"\resMistakes}{44", r"\resMistakes}{45", 1))
    (paper / "generated/figures/sick.pdf").write_bytes(b"%PDF")
    (paper / "generated/listings/swap.txt").unlink()
    (paper / "generated/tables/other.tex").write_text("typed by hand")
    found = check(made, paper)
    assert sorted(line.split()[0] for line in found) == sorted(
        f"generated/{name}"
        for name in ("macros.tex", "tables/mistakes.tex", "figures/sick.pdf", "listings/swap.txt", "tables/other.tex")
    )
    assert any("mistakes.tex differs from the results from line" in line for line in found)
    assert len(generate.write(made, paper)) == 5
    assert check(made, paper) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"\section{Limits}", r"\section{Limits} Of 44 mistakes", "'44' is typed"),
        (r"\section{Limits}", r"\section{Limits} Of forty-four", "'forty-four' is typed"),
        (r"\resCapabilities", "many", r"\resCapabilities is used nowhere"),
        (r"\input{generated/tables/features}", "", "generated/tables/features.tex is shown nowhere"),
        (r"\begin{document}", r"\renewcommand{\resMistakes}{few}\begin{document}", r"\resMistakes is generated"),
        (r"\begin{document}", r"\def\resMistakes{few}\begin{document}", r"\resMistakes is generated"),
        (r"\begin{document}", r"\hasclaimsfalse\begin{document}", r"\hasclaimsfalse is generated"),
        (r"\section{Limits}", r"\resNowhere\section{Limits}", r"no \resNowhere here"),
        (r"\section{Limits}", r"\ifhasnothing a \fi\section{Limits}", r"no study for \ifhasnothing"),
        (r"\section{Limits}", r"\ifhasclaims\section{Limits}", r"without \fi"),
    ],
)
def test_a_text_that_says_something_by_itself_is_found(
    made: dict[str, bytes], paper: Path, old: str, new: str, said: str
) -> None:
    source = paper / "crosslens.tex"
    text = source.read_text()
    assert text.count(old) >= 1
    source.write_text(text.replace(old, new) if old == r"\resCapabilities" else text.replace(old, new, 1))
    found = [line for line in check(made, paper) if said in line]
    assert found, check(made, paper)


def test_a_macro_outside_its_switch_is_found_where_the_study_is_missing(
    results: Results, made: dict[str, bytes], paper: Path
) -> None:
    source = paper / "crosslens.tex"
    source.write_text(source.read_text().replace(r"\section{Limits}", "\\section{Limits} \\resClaims found"))
    assert check(made, paper) == []
    fewer = remade(without(results, "claims"), made)
    generate.write(fewer, paper)
    (found,) = check(fewer, paper)
    assert r"the results have no \resClaims here" in found


def test_a_result_that_changes_changes_words_and_numbers(results: Results, made: dict[str, bytes]) -> None:
    kept = json.loads(json.dumps(results.studies["mistakes"]))
    ours = [each for each in kept["outcomes"] if each["library"] == "crosslens"]
    ours[0]["kind"], ours[1]["kind"] = "silent", "silent"
    changed = Results(results.folder, results.run, {**results.studies, "mistakes": kept}, results.backends)
    before, after = made["macros.tex"].decode(), remade(changed, made)["macros.tex"].decode()
    assert r"\newcommand{\resSilentOurs}{never\xspace}" in before
    assert r"\newcommand{\resSilentOurs}{0 to 2 times\xspace}" in after


def test_captions_say_what_was_run_on_what_and_how_often(made: dict[str, bytes]) -> None:
    tables = {file: data.decode() for file, data in made.items() if file.startswith("tables/")}
    assert len(tables) >= 10
    for file, text in tables.items():
        for part in text.split(r"\begin{table")[1:]:
            caption = part.partition(r"\caption{")[2].partition(r"\label{")[0]
            assert len(caption) > 100, file
            assert any(word in caption for word in ("once", "process", "seeds", "repeats")), (file, caption)
            for command in ("toprule", "midrule", "bottomrule"):
                assert rf"\{command}" in part, file


def test_figures_are_the_same_bytes_in_another_process(made: dict[str, bytes], run: Path, tmp_path: Path) -> None:
    mine = {file: data for file, data in made.items() if file.endswith(".pdf")}
    assert len(mine) == len(figures.FIGURES)
    program = (
        "import sys, hashlib; from pathlib import Path; from crosslens.benchmarks.paper import figures, sources\n"
        "for name, data in figures.render(sources.read(Path(sys.argv[1]))).items(): Path(name + "
        "'.pdf').write_bytes(data)"
    )
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 20\naxes.linewidth: 4\n")
    others = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "MATPLOTLIBRC": str(settings)}
    subprocess.run([sys.executable, "-c", program, str(run)], cwd=tmp_path, env=others, check=True, timeout=120)
    for file, data in mine.items():
        assert (tmp_path / Path(file).name).read_bytes() == data
        assert b"CreationDate" not in data


# ---- the command


def test_exit_status_says_whether_the_paper_is_right(
    run: Path, paper: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {Path(file).stem: data for file, data in made.items() if file.endswith(".pdf")}
    monkeypatch.setattr(figures, "render", lambda _: drawn)  # which takes a second

    def crosslens(*arguments: str) -> int:
        return CliRunner().invoke(app, ["paper", "--results", str(run), "--paper", str(paper), *arguments]).exit_code

    assert crosslens("--check") == 0
    macros = paper / "generated/macros.tex"
    text = macros.read_text()
    macros.write_text(text + "% more\n")
    assert crosslens("--check") == 1
    assert macros.read_text() == text + "% more\n", "--check writes nothing"
    assert crosslens() == 0
    assert macros.read_text() == text


def test_folders_that_cannot_be_used_are_refused(run: Path, paper: Path, tmp_path: Path) -> None:
    from crosslens.benchmarks.paper.command import paper_command

    before = {path: path.stat().st_mtime_ns for path in paper.rglob("*")}
    with pytest.raises(InputError, match="nowhere"):
        paper_command(tmp_path / "nowhere", paper, only_check=False)
    with pytest.raises(InputError, match="no folder"):
        paper_command(run, tmp_path / "nothing", only_check=True)
    with pytest.raises(InputError, match=r"no \.tex"):
        paper_command(run, tmp_path_with(tmp_path / "empty"), only_check=True)
    broken = shutil.copytree(run, tmp_path / "broken")
    for text, said in (("{", r"mistakes\.json"), ('{"outcomes": [{}]}', "studies/mistakes is not what")):
        (broken / "studies" / "mistakes.json").write_text(text)
        with pytest.raises(InputError, match=said):
            paper_command(broken, paper, only_check=False)
    assert {path: path.stat().st_mtime_ns for path in paper.rglob("*")} == before


def tmp_path_with(path: Path) -> Path:
    path.mkdir()
    return path


def test_the_newest_run_is_the_one_that_was_started_last(run: Path, tmp_path: Path) -> None:
    for name, started in (("2026-z", "2026-11-25T00:00:00+00:00"), ("2026-a", "2026-11-27T00:00:00+00:00")):
        facts = json.loads((run / "run.json").read_text()) | {"started": started}
        tmp_path_with(tmp_path / name).joinpath("run.json").write_text(json.dumps(facts))
    assert sources.newest(tmp_path).name == "2026-a"
    with pytest.raises(InputError, match="no run"):
        sources.newest(tmp_path_with(tmp_path / "empty"))


def test_the_committed_paper_is_that_of_the_committed_results() -> None:
    assert check(generate.generated(sources.read(sources.newest(ROOT / "results"))), PAPER) == []


# ---- pages


def test_numbers_and_lists_are_written_as_they_are_read() -> None:
    assert [latex.words(n) for n in (0, 1, 12, 13, 27058)] == ["no", "one", "twelve", "13", "27,058"]
    assert [latex.listed(each) for each in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a, b and c"]
    figures_ = [latex.significant(x, 2) for x in (0, 0.0123, 1234.5, 2.34e-7)]
    assert figures_ == ["0", "0.012", "1,200", r"$2.3\cdot10^{-7}$"]
    assert latex.extent([7, 17, 9]) == "7 to 17"
    assert latex.extent([3, 3]) == "3"


def test_what_latex_says_is_heard(tmp_path: Path) -> None:
    log = (
        "Overfull \\hbox (0.9pt too wide) in paragraph at lines 1--2\n"
        "Overfull \\hbox (12.5pt too wide) in paragraph at lines 3--4\n"
        "LaTeX Warning: Citation `nobody' on page 1 undefined on input line 9.\n"
        "LaTeX Warning: Reference `tab:x' on page 2 undefined on input line 10.\n"
        "Missing character: There is no × in font ptmr8t!\nUnderfull \\hbox (badness 10000)\n"
    )
    found = list(proof.complaints(log))
    assert [line.split()[0] for line in found] == ["a", "LaTeX", "LaTeX", "Missing"]
    assert "12.5 pt too full" in found[0]
    path = tmp_path / "a.log"
    path.write_text("")
    path.with_suffix(".blg").write_text("Warning--empty year in nobody\n")
    path.with_suffix(".aux").write_text(r"\newlabel{sec:end}{{8}{5}{Using it}{section.8}{}}")
    found = proof.proof(path)
    assert found == ["BibTeX: Warning--empty year in nobody", "the text ends on page 5; it must end on page 4"]
    path.with_suffix(".aux").unlink()
    with pytest.raises(InputError, match="make paper"):
        proof.proof(path)
    assert proof.main([str(path)]) == 2


@pytest.mark.parametrize("studies", ["all", "none"])
def test_latex_builds_it(results: Results, made: dict[str, bytes], paper: Path, studies: str) -> None:
    if studies == "none":
        made = remade(without(results, *SWITCHES), made)
        generate.write(made, paper)
    assert check(made, paper) == []
    if (latexmk := shutil.which("latexmk")) is None:
        return
    command = [latexmk, "-pdf", "-outdir=build", "-interaction=nonstopmode", "-halt-on-error", "crosslens.tex"]
    done = subprocess.run(command, cwd=paper, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (paper / "build" / "crosslens.pdf").stat().st_size < 600_000
    found = proof.proof(paper / "build" / "crosslens.log")
    if studies == "none":  # much of the text is not there
        found = [line for line in found if "must end on page" not in line]
    assert found == []
