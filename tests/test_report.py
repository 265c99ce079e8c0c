"""The page of a run, in a real browser: it sorts, filters, opens, prints, and no text in it is ever run."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosslens.adapters import InputError
from crosslens.benchmarks.report import charts, report, write_report
from crosslens.benchmarks.report.blocks import STATES, Cell, Heat, Table
from crosslens.benchmarks.report.drawings import DRAWINGS
from crosslens.benchmarks.report.pages import blocks
from crosslens.benchmarks.report.programs import Programs
from crosslens.benchmarks.store import RunFolder
from crosslens.benchmarks.studies import STUDIES

from .test_runner import RUN

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
CLOSING = "</script><script>window.hacked = 1</script> \u2028 HALF & &amp;"
MODEL = 'x"><script>window.hacked = 1</script>'
PAGE = f"""# A study {HOSTILE}

Text {HOSTILE} and [a link](javascript:window.hacked=1), [a file](../elsewhere.html),
[a program](../../../benchmarks/claims/nnsight_old_value.py), ![x](https://example.org/x.png).

| name | figure | word |
|---|--:|---|
| a {HOSTILE.replace("|", "")} | 9 | x |
| b | 1.5e3 (1 to 2) | y |
| c |  | x |
| d | -10 | y |
| e | 10 | x |
| f | 2 | y |
"""
ARGUMENTS = {
    "suite": "smoke", "backends": ["hooks", "nnsight", "pyvene", "torchlens"], "skipped": {"captum": HOSTILE},
    "tasks": ["ioi"], "models": [MODEL], "threads": 2, "seed": 7, "repeats": 1, "dtype": "float32",
    "attn_implementation": "sdpa",
}  # fmt: skip
ENVIRONMENT = {
    "cpu": f"Some CPU {HOSTILE}", "cores": {"physical": 2, "logical": 4}, "load_average": [0.1, 0.1, 0.1],
    "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
}  # fmt: skip
SCORE = {"max_abs_error": 1e-6, "max_rel_error": 2e-7, "rank_agreement": 0.9996, "effect": 90.0, "noise": 1e-7}


def a_cell(backend: str | None, status: str, **more: Any) -> dict[str, Any]:
    name = "reference" if backend is None else f"{backend}.1"
    cell = {"id": f"ioi.x.{name}", "kind": "reference" if backend is None else "backend", "backend": backend}
    cell |= {"task": "ioi", "model": MODEL, "repeat": 1, "status": status, "reason": None, "version": "1.2.3"}
    return cell | {"figures": {"task_s": 12.5, "peak_bytes": 8e8}, "headline": f"layer 7 {HOSTILE}", **more}


CELLS = [
    (a_cell(None, "done"), 1.0),
    (a_cell("hooks", "right", score=SCORE | {"right": True}), 1.25),
    (a_cell("nnsight", "wrong", score=SCORE | {"right": False}, reason=HOSTILE), None),
    (a_cell("pyvene", "crashed", reason=CLOSING, log=["first line", "Segmentation fault"]), None),
]


def a_run(path: Path, cells: list[Any] = CELLS) -> Path:
    """A run that was stopped before torchlens."""
    planned = [cell["id"] for cell, _ in CELLS] + ["ioi.x.torchlens.1"]
    facts = {"arguments": ARGUMENTS, "environment": ENVIRONMENT, "random_models": [MODEL], "cells": planned}
    folder = RunFolder(path, facts)
    for cell, ratio in cells:
        samples = [{"order": "bare,step", "bare_s": 1.0, "step_s": ratio + 0.01 * i} for i in range(8)] if ratio else []
        folder.add(cell, samples, folder.scratch(cell["id"]))
    folder.close()
    lines = (path / "cells.jsonl").read_text(encoding="utf-8")
    (path / "cells.jsonl").write_text(lines.replace("HALF", "\\ud800"), encoding="utf-8")  # half a surrogate pair
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with three studies: two of the committed run, and one that this version does not know."""
    path = a_run(tmp_path_factory.mktemp("runs") / "a run & <b>more<b>")
    (path / "studies").mkdir()
    for name in ("mistakes", "claims"):
        shutil.copy(RUN / "studies" / f"{name}.json", path / "studies")
    (path / "studies" / "unknown.md").write_text(PAGE)
    return path


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(folder, out) == out.stat().st_size
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield running
        running.close()


def opened(browser: Any, path: Path) -> Iterator[Any]:
    """A page from disk; ends by asserting that nothing went wrong in it, and that nothing was asked of the network."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    assert tab.evaluate("window.hacked") is None, "a text of the run was run"
    assert not problems
    assert set(asked) == {path.as_uri()}, "nothing beside the page is asked for"
    tab.close()


@pytest.fixture(scope="module")
def shared(browser: Any, written: Path) -> Iterator[Any]:
    yield from opened(browser, written)


@pytest.fixture
def tab(shared: Any) -> Any:
    """The page as it is when it is opened."""
    shared.emulate_media(color_scheme="light", media="screen")
    shared.reload()
    return shared


def in_section(tab: Any, name: str) -> Any:
    return tab.locator(f"section[aria-labelledby={name}]")


def column(sheet: Any, number: int) -> list[str]:
    return list(sheet.locator(f"tbody tr:not([hidden]) td:nth-child({number})").all_inner_texts())


def test_it_is_the_same_bytes_every_time(folder: Path, written: Path) -> None:
    assert report(folder).encode("utf-8", "replace") == written.read_bytes()


# ---- what it says


def test_the_overview_says_what_was_run_and_what_is_missing(tab: Any) -> None:
    overview = in_section(tab, "overview")
    text = overview.inner_text()
    assert f"The smoke suite: 1 task on {MODEL} through 4 backends, 1 process a cell." in text
    assert "Unfinished: 1 of 5 planned cells are not here." in text
    assert "ioi.x.torchlens.1" in text
    assert "python -m crosslens.benchmarks.residue --out" in text, "a study that it lacks, and how to have it"
    assert "benchmarks.mistakes --out" not in text
    sheet = overview.locator(".sheet").first
    head = sheet.locator("thead .printed").all_text_contents()
    lines = [line.locator("td").all_inner_texts() for line in sheet.locator("tbody tr").all()]
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert [rows["hooks"][name] for name in ("right", "wrong", "failed")] == ["1 of 1", "0", "0"]
    assert [rows["nnsight"][name] for name in ("right", "wrong")] == ["0 of 1", "1"]
    assert rows["pyvene"]["failed"] == "1"
    assert rows["torchlens"]["cannot"] == "1"
    assert re.fullmatch(r"1\.2\d", rows["hooks"]["ratio to bare"])
    kept = json.loads((RUN / "studies" / "mistakes.json").read_text())["outcomes"]
    silent = sum(each["library"] == "nnsight" and each["kind"] == "silent" for each in kept)
    assert rows["nnsight"]["mistakes silent"].startswith(f"{silent} of ")
    claims = json.loads((RUN / "studies" / "claims.json").read_text())
    holding = sum(each["library"] == "transformer-lens" and each["holds"] for each in claims)
    assert rows["transformer_lens"]["silent errors"] == str(holding)


def test_a_run_without_studies_or_cells_has_a_page_that_says_so(browser: Any, tmp_path: Path) -> None:
    for name, cells in (("bare", CELLS), ("empty", [])):
        path = tmp_path / f"{name}.html"
        write_report(a_run(tmp_path / name, cells), path)
        for tab in opened(browser, path):
            text = in_section(tab, "overview").inner_text()
            assert "Not in this run:" in text
            assert text.count("python -m crosslens.benchmarks.") >= 5
            if name == "empty":
                assert "no table yet" in text
                assert "no cell of this run was timed" in text
                assert "Unfinished: 5 of 5" in text


def test_intervals_are_drawn_where_the_figures_say(tab: Any) -> None:
    drawing = in_section(tab, "cost").locator("svg").first
    assert drawing.get_attribute("aria-label") == f"ioi on {MODEL}"
    dots = drawing.locator("circle")
    assert dots.count() == 2, "the control and hooks: the others have no time"
    one = float(drawing.locator("line.one").last.get_attribute("x1"))
    at = [float(dots.nth(i).get_attribute("cx")) for i in range(2)]
    assert abs(at[0] - one) < at[1] - one, "1.25 lies farther from 1 than the control does"
    assert "wrong" in drawing.text_content()
    title = drawing.locator("g.mark title").text_content()
    found = re.fullmatch(r"hooks: ([\d.]+) \(([\d.]+) to ([\d.]+)\)", title)
    assert found
    assert 1.25 <= float(found[2]) <= float(found[1]) <= float(found[3]) <= 1.33


# ---- tables


def test_headers_sort_by_figure_and_by_word_and_back(tab: Any) -> None:
    sheet = in_section(tab, "unknown").locator(".sheet")
    button = sheet.get_by_role("button", name="figure")
    before = column(sheet, 2)
    button.click()
    assert column(sheet, 2) == ["1.5e3 (1 to 2)", "10", "9", "2", "-10", ""], "absent ones last"
    assert sheet.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert column(sheet, 2) == ["-10", "2", "9", "10", "1.5e3 (1 to 2)", ""]
    button.press("Enter")
    assert column(sheet, 2) == before
    assert sheet.locator("th[aria-sort]").count() == 0
    sheet.get_by_role("button", name="word").click()
    assert column(sheet, 3) == ["x", "x", "x", "y", "y", "y"]


def test_words_and_choices_filter_rows(tab: Any) -> None:
    sheet = in_section(tab, "claims").locator(".sheet").first
    whole = len(column(sheet, 1))
    sheet.get_by_label("Filter").fill("NNSIGHT shape")
    found = [row.inner_text().lower() for row in sheet.locator("tbody tr:not([hidden])").all()]
    assert 0 < len(found) < whole
    assert all("nnsight" in text and "shape" in text for text in found)
    assert sheet.get_by_role("status").inner_text() == f"{len(found)} of {whole} rows"
    sheet.get_by_label("Filter").fill("")
    choice = sheet.get_by_label("library")
    choice.select_option("=inseq 0.7.1")
    assert set(column(sheet, 1)) == {"inseq 0.7.1"}
    choice.select_option("")
    assert len(column(sheet, 1)) == whole


# ---- what opens


def test_a_claim_opens_its_program(tab: Any) -> None:
    in_section(tab, "claims").get_by_role("button", name="nnsight_old_value.py").click()
    text = importlib.resources.files("crosslens.benchmarks.claims").joinpath("nnsight_old_value.py").read_text()
    assert tab.locator("dialog pre").text_content() == text
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()


def test_keys_move_in_a_map_and_open_a_cell(tab: Any) -> None:
    figure = in_section(tab, "overview").locator("figure.heat")
    assert figure.locator('td button[tabindex="0"]').count() == 1, "one stop for Tab"
    figure.locator('td button[tabindex="0"]').focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowRight")
    assert figure.locator("td button:focus").inner_text() == "wrong"
    tab.keyboard.press("Enter")
    dialog = tab.locator("dialog")
    assert dialog.locator("h2").inner_text() == f"ioi on {MODEL}, nnsight"
    details = dict(zip(dialog.locator("dt").all_inner_texts(), dialog.locator("dd").all_inner_texts(), strict=True))
    assert details["reason, ioi.x.nnsight.1"] == HOSTILE
    assert details["result"] == "wrong"
    assert dialog.locator("pre").inner_text().startswith("crosslens run --task ioi --model 'x\"><script>")
    tab.keyboard.press("Escape")
    assert figure.locator("td button:focus").inner_text() == "wrong", "and one is back where one was"
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    assert "Segmentation fault" in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()


def test_a_mistake_opens_on_what_was_meant_and_its_program(tab: Any) -> None:
    figure = in_section(tab, "mistakes").locator("figure.heat")
    kept = json.loads((RUN / "studies" / "mistakes.json").read_text())["outcomes"]
    assert figure.locator("td button.bad").count() == sum(each["kind"] == "silent" for each in kept)
    figure.get_by_role("button", name="layer out of range, penzai").click()
    code = tab.locator("dialog pre").inner_text()
    assert code.endswith("return _zeroed(scene, 3)\n") or code.endswith("return _zeroed(scene, 3)")
    assert "def _zeroed(" in code, "with what it calls"
    tab.keyboard.press("Escape")


# ---- whatever a text holds


def test_hostile_texts_are_shown_and_nothing_more(tab: Any, written: Path) -> None:
    reasons = column(in_section(tab, "cells").locator(".sheet"), 4)
    assert HOSTILE in reasons
    assert any(text.startswith("</script><script>") for text in reasons)
    assert HOSTILE in in_section(tab, "unknown").locator("td").first.inner_text()
    assert tab.locator("img").count() == 0
    assert tab.locator("script").count() == 2
    assert tab.locator("a[href^='javascript'], a[href*='elsewhere']").count() == 0
    assert tab.locator("h1").inner_text() == "crosslens: a run & <b>more<b>"
    assert in_section(tab, "unknown").get_by_role("button", name="a program").count() == 1
    assert all(href.startswith(("#", "https://", "http://")) for href in tab.eval_on_selector_all(
        "a", "all => all.map(a => a.getAttribute('href'))"))  # fmt: skip
    assert b"<script>window" not in written.read_bytes()


class Tags(HTMLParser):
    """Collects what is markup in a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.names: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.names |= {name for name, _ in attrs}


PIECES = ["<", ">", "&", '"', "'", "`", "|", "[", "](", ")", "script", "onerror=", "javascript:", "\n", "# ", "![", "*"]
PIECES += ["| a | b |\n|---|---|\n", "https://github.com/a/b/issues/1", "&lt;", "- "]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join))
def test_no_markdown_becomes_other_than_harmless_markup(text: str) -> None:
    tags = Tags("")
    for block in blocks(text, Programs())[1]:
        parts = (
            [cell for row in (block.head, *block.rows) for cell in row] if isinstance(block, Table) else [block.html]
        )
        tags.feed("".join(map(str, parts)))
    harmless = {"p", "ul", "ol", "li", "blockquote", "strong", "em", "code", "pre", "a", "br", "hr", "button"}
    assert tags.seen <= harmless | {f"h{i}" for i in range(1, 7)}
    assert tags.names <= {"href", "rel", "type", "class", "data-program"}


# ---- for every reader


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_cells_have_contrast_in_light_and_dark(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    script = """(names => {
      const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((v) => Number(v) / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const paper = getComputedStyle(document.body).backgroundColor;
      return names.map((name) => { const style = getComputedStyle(document.querySelector(name));
        const under = /, 0\\)|transparent/.test(style.backgroundColor) ? paper : style.backgroundColor;
        const [a, b] = [light(style.color), light(under)].sort(); return [name, (b + 0.05) / (a + 0.05)]; });
    })"""
    names = [
        "body",
        ".note",
        "a",
        "td button.good",
        "td button.fair",
        "td button.poor",
        "td button.bad",
        "td button.none",
    ]
    for name, contrast in tab.evaluate(f"({script})({json.dumps(names)})"):
        assert contrast >= 4.5, f"{name} in {scheme}"


def test_everything_that_can_be_used_has_a_name_and_ids_are_unique(tab: Any) -> None:
    unnamed = tab.evaluate(
        """[...document.querySelectorAll('select, input, button, [role=region], [role=img]')].filter(e =>
           !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label')).length"""
    )
    assert unnamed == 0
    ids = tab.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = tab.eval_on_selector_all("nav a", "all => all.map(a => a.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)
    assert targets == tab.eval_on_selector_all("main section h2", "all => all.map(h => h.id)")


def test_it_is_as_wide_as_a_narrow_screen(tab: Any) -> None:
    tab.set_viewport_size({"width": 360, "height": 640})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.set_viewport_size({"width": 1280, "height": 900})


def test_on_paper_tables_are_whole_and_controls_are_not_there(tab: Any) -> None:
    tab.emulate_media(media="print", color_scheme="dark")
    sheet = in_section(tab, "claims").locator(".sheet").first
    assert not sheet.get_by_label("Filter").is_visible()
    assert not tab.locator("nav").is_visible()
    assert sheet.locator("thead .printed").first.is_visible(), "headers are text, which is repeated on each page"
    fits = "e => e.scrollHeight <= e.clientHeight + 1"
    assert sheet.locator(".scroll").evaluate(fits)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf(prefer_css_page_size=True).startswith(b"%PDF")


# ---- the committed run


def test_the_committed_run_is_a_page_under_eight_megabytes(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert write_report(RUN, path) < 8_000_000
    for tab in opened(browser, path):
        names = tab.eval_on_selector_all("main section", "all => all.map(e => e.getAttribute('aria-labelledby'))")
        assert names[:3] == ["overview", "cost", "tasks"]
        assert names[-2:] == ["cells", "environment"]
        assert {"claims", "mistakes", "residue", "idioms", "known_truth"} <= set(names)
        for name in DRAWINGS:
            if name in STUDIES and (RUN / "studies" / f"{name}{STUDIES[name].kept}").exists():
                assert in_section(tab, name).locator("figure").count() >= 1, f"{name} is drawn"
        curves = in_section(tab, "known_truth").locator("figure.charts")
        kinds = curves.locator(".panels:not([hidden]) svg")
        assert kinds.count() == 9
        assert kinds.first.locator("path.curve").count() == 7
        assert "power" in kinds.first.text_content()
        curves.get_by_label("Show").select_option(label="AUROC, 8 examples of each category")
        assert "AUROC" in kinds.first.text_content()
        in_section(tab, "idioms").get_by_role("button", name="patch head, nnsight").click()
        assert "attn" in tab.locator("dialog pre").first.inner_text()


# ---- bad input


def test_what_cannot_be_read_or_written_is_said_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    for run, says in ((tmp_path, "holds no run"), (tmp_path / "none", "no folder")):
        with pytest.raises(InputError, match=says):
            write_report(run, out)
    with pytest.raises(InputError, match="is a folder; name a file"):
        write_report(folder, tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        write_report(folder, tmp_path / "none" / "report.html")
    damaged = a_run(tmp_path / "damaged")
    (damaged / "studies").mkdir()
    for text in ("{", '{"outcomes": [{"library": "x"}], "versions": {}}'):
        (damaged / "studies" / "mistakes.json").write_text(text)
        with pytest.raises(InputError, match=r"mistakes\.json cannot be"):
            write_report(damaged, out)
    (damaged / "studies" / "mistakes.json").unlink()
    (damaged / "studies" / "own.md").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"own\.md cannot be read"):
        write_report(damaged, out)
    assert not out.exists()


def test_the_command_ends_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from crosslens.benchmarks.cli import main

    monkeypatch.setattr("sys.argv", ["crosslens", "report", str(tmp_path / "none"), "-o", str(tmp_path / "x.html")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
    run, out = a_run(tmp_path / "run"), tmp_path / "x.html"
    monkeypatch.setattr("sys.argv", ["crosslens", "report", str(run), "-o", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert out.read_text(encoding="utf-8") == report(run).encode("utf-8", "replace").decode()


# ---- parts


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e9))
def test_ticks_are_round_and_within_the_axis(low: float, factor: float) -> None:
    for found in (charts.ticks(low, low * factor), charts.even(low, low * factor)):
        assert 0 < len(found) <= 8
        assert found == sorted(set(found))
        assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in found)


def test_a_map_keeps_its_cells_by_number() -> None:
    cells = [Cell(("f", f"r{i}", f"c{i % 2}"), STATES[i], str(i), {"a": HOSTILE, "b": str(i)}, ["p"]) for i in range(5)]
    kept = Heat("t", ("family", "row", "column"), cells, {}).data()
    for cell, (at, state, shown, details, programs) in zip(cells, kept["cells"], strict=True):
        texts = kept["texts"]
        assert tuple(kept["names"][axis][number] for axis, number in enumerate(at)) == cell.at
        assert (STATES[state], texts[shown]) == (cell.state, cell.shown)
        pairs = [texts[number] for number in details]
        assert dict(zip(pairs[::2], pairs[1::2], strict=True)) == cell.details
        assert [texts[number] for number in programs] == cell.programs


def test_programs_are_of_this_package_and_of_nothing_else() -> None:
    programs = Programs()
    for key in ("../cli.py", "claims/../../pyproject.toml", "/etc/passwd", "none.py", "mistakes/nnsight.py::none"):
        assert programs.get(key) is None
    assert programs.get("mistakes/nnsight.py::misspelled_site") is not None
    assert list(programs.texts) == ["mistakes/nnsight.py::misspelled_site"]


# ---- drawings of studies, on measurements made up here


def drawn(name: str, kept: str, path: Path) -> list[Any]:
    file = path / f"{name}.json"
    file.write_text(kept, encoding="utf-8")
    return DRAWINGS[name](file, Programs())


def test_the_worst_answer_of_a_site_is_what_the_map_shows(tmp_path: Path) -> None:
    from crosslens.benchmarks.correctness.asking import Distance
    from crosslens.benchmarks.correctness.design import possible
    from crosslens.benchmarks.correctness.judge import Verdict
    from crosslens.benchmarks.correctness.kept import Row, text

    cells = [cell for cell in possible() if cell.operation == "capture" and cell.local in ("embed", "attn.z")]
    one, two = (next(cell for cell in cells if cell.local == local) for local in ("attn.z", "embed"))
    silent = Verdict("silently wrong", Distance(0.5, 2.0, 1.0, 0.5, "capture"), 1e-7, "", f"off by half {HOSTILE}")
    noise = Verdict("noise", Distance(3e-8, 1e-7, 1.0, 1.0, "capture"), 1e-7)
    rows = [Row(backend, one, "float64", noise) for backend in ("hooks", "pyvene")]
    rows += [Row("hooks", one, "float32", noise), Row("pyvene", one, "float32", silent)]
    rows.append(Row("pyvene", two, "float64", Verdict("refused", why="it cannot")))
    backends = {name: {"library": name, "version": "1", "missing": None, "strength": 2} for name in ("hooks", "pyvene")}
    by_backend, by_site = drawn("correctness", text(rows, {}, (9, 27), backends), tmp_path)
    found = {cell.at: cell for cell in by_site.cells}
    sites, operations = by_site.data()["names"][2:]
    assert (sites, operations) == (["embed", "attn.z"], ["capture"]), "in the order of a forward"
    assert found["hooks", "all", "attn.z", "capture"].state == "good"
    worst = found["pyvene", "all", "attn.z", "capture"]
    assert (worst.state, worst.shown, worst.details["answers"]) == ("bad", "silent 1/2", "1 silently wrong, 1 noise")
    assert found["pyvene", "float64", "attn.z", "capture"].state == "good"
    assert found["pyvene", "all", "embed", "capture"].state == "none"
    details = found["pyvene", "float32", "attn.z", "capture"].details[f"{one.id}, float32"]
    assert "relative error 0.5, cosine 1, factor 0.5" in details, "what a cosine does not see"
    assert HOSTILE in details
    assert {cell.at: cell.state for cell in by_backend.cells}["all", "capture", "pyvene"] == "bad"
    programs = Programs()
    DRAWINGS["correctness"](tmp_path / "correctness.json", programs)
    assert f"--backend pyvene --only {one.id}" in programs.texts[worst.programs[0]]


def positions(drawing: str, kind: str) -> list[float]:
    """Where the points of a kind lie, in pixels from the left."""
    groups = re.findall(rf'<g class="{kind}">(.*?)</g>', drawing)
    return [float(found) for each in groups for found in re.findall(r'(?:cx="| d="M)([\d.]+)', each)]


def test_overhead_is_drawn_through_the_inspector_and_directly(tmp_path: Path) -> None:
    ways = {"bare": 1.0, "native": 1.0, "through": 4.0, "directly": 2.0}
    right = {way: {"status": "right", "s": [seconds] * 6} for way, seconds in ways.items()}
    refused = right | {"through": {"status": "unsupported", "reason": "it cannot"}}
    kept = {"processes": [
        {"job": {"backend": name, "device": "cpu"},
         "found": {"cells": [{"shape": "small", "operation": "capture_one", "ways": found}]}}
        for name, found in (("hooks", right), ("pyvene", refused))
    ]}  # fmt: skip
    (figures,) = drawn("overhead", json.dumps(kept), tmp_path)
    (panel,) = figures.panels["small"]
    assert "hooks: 4 (4 to 4)" in panel
    assert ">unsupported</text>" in panel
    (through,) = positions(panel, "mark")
    directly = positions(panel, "other")
    one = float(re.findall(r'class="one" x1="([\d.]+)"', panel)[-1])
    assert len(directly) == 2
    assert through - one == pytest.approx(2 * (directly[0] - one), abs=0.3), "2 lies half way from 1 to 4"


def test_published_ratios_stand_beside_those_measured(tmp_path: Path) -> None:
    from crosslens.benchmarks.published.catalogue import CLAIMS

    claim = CLAIMS["nnbench.attribution"]
    assert claim.figure is not None
    samples = {"samples": [[1.0, 2 * claim.figure]] * 8}
    (figures,) = drawn("published", json.dumps({"rows": {claim.id: [samples]}}), tmp_path)
    (panel,) = figures.panels[""]
    assert f"{claim.figure:.4g}<" in panel
    assert f"{2 * claim.figure:.4g} (" in panel
    assert positions(panel, "mark") > positions(panel, "other")


def test_scaling_is_drawn_on_logarithmic_axes_without_what_is_not_above_zero(tmp_path: Path) -> None:
    def point(x: int, over: float) -> dict[str, Any]:
        ways = {"bare": {"status": "bare", "s": [1.0] * 6}, "through": {"status": "right", "s": [1.0 + over] * 6}}
        return {"axis": "sites", "x": x, "ways": ways}

    over = {"hooks": {1: 0.001, 10: 0.01, 100: 0.1}, "pyvene": {1: -0.001, 10: 0.02, 100: 0.02}}
    kept = {"settings": {"axes": {"sites": [1, 10, 100]}}, "processes": [
        {"job": {"backend": name, "device": "cpu"}, "found": {"points": [point(x, y) for x, y in costs.items()]}}
        for name, costs in over.items()
    ]}  # fmt: skip
    (figures,) = drawn("scaling", json.dumps(kept), tmp_path)
    assert dict(figures.legend) == {"0": "hooks", "1": "pyvene"}
    (panel,) = figures.panels[""]
    (hooks, pyvene) = re.findall(r'class="curve" d="M([^"]+)"', panel)
    points = [[float(v) for v in each.split()] for each in hooks.split("L")]
    assert len(points) == 3
    assert len(pyvene.split("L")) == 2, "a cost below 0 is left out"
    for axis in (0, 1):
        assert points[1][axis] == pytest.approx((points[0][axis] + points[2][axis]) / 2, abs=0.2), "a straight line"
