"""The page of a comparison, in a real browser: it draws, answers clicks and keys, and no text in it is ever run."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crosslens.adapters import InputError
from crosslens.tasks.page import page, split_layer, to_script

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "\"quotes\" 'and' `ticks` & &amp; \\ \u2028 \u2029 -->",
    "x" * 10_000,
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
]


def frames(sites: list[str], kpis: list[str], categories: list[str], seed: int = 0) -> dict[str, pd.DataFrame]:
    """A table, its contrasts and its ranking, of random figures."""
    rng = np.random.default_rng(seed)
    rows = list(itertools.product(sites, kpis, categories))
    table = pd.DataFrame(rows, columns=["site", "kpi", "category"])
    quantiles = np.sort(rng.normal(size=(len(rows), 7)), axis=1)
    table[["min", "q05", "q25", "q50", "q75", "q95", "max"]] = quantiles
    table["n"], table["mean"], table["sd"] = 40, quantiles.mean(1), quantiles.std(1)
    pairs = list(itertools.combinations(categories, 2))
    rows = [(site, kpi, a, b) for site, kpi in itertools.product(sites, kpis) for a, b in pairs]
    contrasts = pd.DataFrame(rows, columns=["site", "kpi", "a", "b"])
    contrasts["g"] = rng.normal(size=len(rows))
    contrasts["g_low"], contrasts["g_high"] = contrasts["g"] - 0.4, contrasts["g"] + 0.4
    for name in ("difference", "auroc", "p_welch", "p_maxt", "q_by"):
        contrasts[name] = rng.uniform(size=len(rows))
    ranking = contrasts.reindex(contrasts["g"].abs().sort_values(ascending=False).index)
    return {"table": table, "contrasts": contrasts, "ranking": ranking}


SITES = [f"blocks.{layer}.{kind}" for layer in range(4) for kind in ("resid_post", "attn.out", "mlp.out")]
SMALL = frames(["embed", *SITES], ["mean", "rms"], ["Kenyan", "Norwegian", HOSTILE[0]])
EXAMPLES = pd.DataFrame({"text": HOSTILE * 2, "category": (["Kenyan"] * 5) + [HOSTILE[1]] * 5})
CURVES = pd.DataFrame(
    {"name": ["loss"] * 20, "category": ["easy"] * 10 + ["hard"] * 10, "step": [*range(10)] * 2, "value": [*range(20)]}
)


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


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of `SMALL`, opened from disk; ends by asserting that nothing went wrong in it."""
    path = tmp_path / "comparison.html"
    path.write_text(page("Who <b>is</b> it?", **SMALL, examples=EXAMPLES, curves=CURVES, facts={"model": "tiny"}))
    tab = browser.new_page()
    problems: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    assert not problems
    assert all(url.startswith("file:") for url in asked), "nothing comes from the network"
    assert tab.evaluate("window.hacked") is None, "a text of the caller's was run"
    tab.close()


def test_a_click_shows_the_distributions(opened: Any) -> None:
    assert opened.locator("#heat button").count() == 13
    assert opened.locator("#detail-body svg").count() == 0
    opened.get_by_role("button", name="blocks.2.mlp.out", exact=False).click()
    assert opened.locator("#detail-body h3").first.inner_text().startswith("blocks.2.mlp.out")
    assert opened.locator("#detail-body svg circle").count() == 3, "a mean for each category"
    want = SMALL["table"].query("site == 'blocks.2.mlp.out' and category == 'Kenyan'")
    kpi = opened.locator("#kpi option:checked").inner_text()
    cells = opened.locator("#detail-body table").first.locator("tbody tr").first.locator("td").all_inner_texts()
    head = opened.locator("#detail-body table").first.locator("thead th").all_inner_texts()
    assert float(cells[head.index("q50")]) == pytest.approx(want[want["kpi"] == kpi]["q50"].item(), rel=0.01)


def test_keys_move_in_the_heat_map_and_open_a_site(opened: Any) -> None:
    first = opened.get_by_role("button", name="blocks.0.resid_post", exact=False)
    first.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("Enter")
    assert opened.locator("#detail-body h3").first.inner_text().startswith("blocks.1.attn.out")


def test_the_heat_map_shows_what_is_selected(opened: Any) -> None:
    opened.locator("#kpi").select_option(label="rms")
    opened.locator("#show").select_option(label="effect size g, Kenyan against Norwegian")
    cell = opened.get_by_role("button", name="blocks.3.attn.out", exact=False)
    row = SMALL["contrasts"].query(
        "site == 'blocks.3.attn.out' and kpi == 'rms' and a == 'Kenyan' and b == 'Norwegian'"
    )
    title = cell.get_attribute("title")
    assert title.startswith("blocks.3.attn.out: ")
    assert float(title.partition(": ")[2]) == pytest.approx(row["g"].item(), abs=0.01)
    assert float(cell.inner_text()) == pytest.approx(row["g"].item(), rel=0.05)
    assert len(cell.inner_text()) <= 5, "it fits its cell"


def test_the_ranking_filters_sorts_and_leads_to_the_site(opened: Any) -> None:
    rows = opened.locator("#ranking tbody tr")
    opened.locator("#filter-site").fill("MLP")
    assert all("mlp" in text for text in rows.locator("td:first-child").all_inner_texts())
    opened.locator("#filter-kpi").select_option("rms")
    assert rows.count() == 12
    opened.get_by_role("button", name="g", exact=True).click()
    found = [float(text) for text in rows.locator("td:nth-child(6)").all_inner_texts()]
    assert found == sorted(found, reverse=True)
    opened.locator("#filter-g").fill("99")
    assert rows.count() == 0
    opened.locator("#filter-g").fill("")
    rows.first.press("Enter")
    assert "mlp" in opened.locator("#detail-body h3").first.inner_text()


def test_hostile_texts_are_shown_and_nothing_more(opened: Any) -> None:
    texts = opened.locator("#example-table td.text").all_text_contents()
    assert HOSTILE[0] in texts
    assert HOSTILE[1] in texts
    assert any(text.startswith("xxx") and text.endswith("(10,000 characters)") for text in texts)
    assert opened.locator("h1").inner_text() == "Who <b>is</b> it?"
    assert opened.locator("#curve-body polyline").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    script = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).map(Number)"
    ink, paper = (sum(opened.evaluate(script.format(name))) / 3 for name in ("color", "backgroundColor"))
    assert abs(ink - paper) > 180
    assert (paper > 128) == (scheme == "light")


def test_everything_that_can_be_used_has_a_name(opened: Any) -> None:
    unnamed = opened.evaluate(
        """[...document.querySelectorAll('select, input, button, [role=region], [role=img]')].filter(e =>
           !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label')).length"""
    )
    assert unnamed == 0


def test_a_page_without_contrasts_or_of_one_category_opens(browser: Any, tmp_path: Path) -> None:
    one = frames(SITES, ["mean"], ["only"])
    one["table"].loc[0, ["mean", "min", "max"]] = [np.nan, -np.inf, np.inf]
    for name, each in (("one", one), ("empty", {key: frame.iloc[:0] for key, frame in one.items()})):
        path = tmp_path / f"{name}.html"
        path.write_text(page(name, **each))
        tab = browser.new_page()
        problems: list[str] = []
        tab.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        tab.goto(path.as_uri())
        assert "nothing to rank" in tab.locator("#ranking-note").inner_text()
        if name == "one":
            tab.get_by_role("button", name="blocks.0.resid_post", exact=False).click()
        assert not problems
        tab.close()


def test_a_large_comparison_stays_under_six_megabytes() -> None:
    kinds = ["resid_pre", "resid_mid", "resid_post", *(f"attn.{k}" for k in "qkvz"), "attn.out", "mlp.post", "mlp.out"]
    sites = [f"blocks.{layer}.{kind}" for layer in range(30) for kind in kinds]
    large = frames(sites, [f"kpi{i}" for i in range(12)], list("abcde"))
    assert (len(large["table"]), len(large["contrasts"])) == (18_000, 36_000)
    assert len(page("large", **large).encode()) < 6_000_000


def test_data_cannot_end_its_script_element() -> None:
    text = to_script({"a": HOSTILE, "b": [np.nan, np.inf, np.float64(1 / 3), np.int64(3)]})
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"a": HOSTILE, "b": [None, "inf", 0.3333, 3]}


@pytest.mark.parametrize(
    ("site", "split"),
    [
        ("blocks.3.mlp.out", ("blocks.*.mlp.out", 3)),
        ("module:model.layers.12.mlp:output", ("module:model.layers.*.mlp:output", 12)),
        ("module:conv1:output", ("module:conv1:output", None)),
        ("embed", ("embed", None)),
    ],
)
def test_sites_split_into_kind_and_layer(site: str, split: tuple[str, int | None]) -> None:
    assert split_layer(site) == split


def test_a_table_without_its_columns_is_refused() -> None:
    with pytest.raises(InputError, match="column 'category'"):
        page("x", SMALL["table"].drop(columns="category"), SMALL["contrasts"], SMALL["ranking"])
