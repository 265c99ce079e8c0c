"""`compare`: the figures are those of the texts, whatever the batches, the backend, the store or the split."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from crosslens.adapters import InputError, Inspector, SiteError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.conformance.oracle import Oracle
from crosslens.benchmarks import cli
from crosslens.tasks import Comparison, compare
from crosslens.tasks.engine import KPIS
from crosslens.tasks.examples import read_examples

module: Any = sys.modules["crosslens.tasks.compare"]  # whose name is that of its function
SITES = ["blocks.*.resid_post", "blocks.1.attn.z", "blocks.1.attn.pattern", "blocks.1.mlp.post"]
WORDS = """the cat sat on a mat and saw one red bird near the old wooden house by the sea""".split()  # noqa: SIM905


def stories(n: int = 12) -> list[dict[str, str]]:
    """Pairs of texts of different lengths, in which one word is another."""
    found = []
    for i in range(n // 2):
        words = WORDS[: 4 + 2 * i % 11]
        for category, word in (("sea: blue", "ocean"), ('hill "green"', "mountain")):
            text = " ".join([*words, word, *words[:3]])
            found.append({"text": text, "category": category, "pair": f"story {i}", "length": str(len(words) > 8)})
    return found


@pytest.fixture(scope="module")
def lens() -> Iterator[Inspector]:
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(lens: Inspector) -> Comparison:
    return compare(lens, stories(), sites=SITES, batch_size=4)


def same(a: Comparison, b: Comparison, loose: float = 1e-9) -> None:
    """Equal in every table; the order of categories may differ."""
    keys = ["site", "kpi", "category"]
    left, right = (each.table.sort_values(keys).reset_index(drop=True) for each in (a, b))
    pd.testing.assert_frame_equal(left, right, rtol=loose, atol=loose, check_like=True)
    assert a.examples.equals(b.examples)
    np.testing.assert_allclose(a.values, b.values, rtol=loose, atol=loose)


def test_figures_are_those_of_each_text_by_itself(lens: Inspector, whole: Comparison) -> None:
    oracle = Oracle(lens.model, attn_implementation="eager")
    columns = {feature: i for i, feature in enumerate(whole.facts.features)}
    assert len(whole.examples) == 12
    for row, example in whole.examples.iterrows():
        ids = torch.tensor([lens.tokenizer(example["text"])["input_ids"]])
        truth = oracle.run(ids)
        for site in ("blocks.2.resid_post", "blocks.1.attn.z", "blocks.1.mlp.post"):
            x = truth.sites[site].double().numpy()
            want = {
                "mean": x.mean(),
                "sd": x.std(),
                "max": x.max(),
                "kurtosis": ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3,
            }
            for kpi, value in want.items():
                assert whole.values[row, columns[site, kpi]] == pytest.approx(value, rel=1e-4), (site, kpi)
        pattern = truth.sites["blocks.1.attn.pattern"].double().numpy()
        seen = pattern[np.tril(np.ones(pattern.shape[-2:], dtype=bool))[None, None].repeat(4, 1)]
        assert whole.values[row, columns["blocks.1.attn.pattern", "sd"]] == pytest.approx(seen.std(), rel=1e-4)


def test_the_table_is_of_the_examples(whole: Comparison) -> None:
    table, examples = whole.table, whole.examples
    assert set(table["category"]) == {"sea: blue", 'hill "green"'}
    column = whole.facts.features.index(("blocks.1.mlp.post", "rms"))
    for category, group in table[(table["site"] == "blocks.1.mlp.post") & (table["kpi"] == "rms")].groupby("category"):
        values = whole.values[examples["category"] == category, column]
        row = group.iloc[0]
        assert (row["n"], row["missing"]) == (6, 0)
        want = [values.mean(), values.std(ddof=1), values.min(), np.median(values), values.max()]
        assert row[["mean", "sd", "min", "q50", "max"]].tolist() == pytest.approx(want)


@pytest.mark.parametrize("backend", ["nnsight", "pyvene", "tdhook", "transformer_lens"])
def test_every_backend_gives_the_same(whole: Comparison, backend: str) -> None:
    with open_inspector(backend, *tiny_model("llama", dtype=torch.float64)) as other:
        found = compare(other, stories(), sites=SITES, batch_size=5)
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-5, atol=1e-7)


def test_batches_windows_and_order_play_no_part(lens: Inspector, whole: Comparison, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    for size in (1, 3, 12):
        same(compare(lens, iter(stories()), sites=SITES, batch_size=size), whole, 1e-5)


def test_two_halves_merge_to_the_whole(lens: Inspector, whole: Comparison, tmp_path: Path) -> None:
    frame = pd.DataFrame(stories())
    halves = [compare(lens, frame.iloc[part], sites=SITES) for part in (slice(0, 5), slice(5, 12))]
    halves[0].save(tmp_path / "half")
    merged = Comparison.load(tmp_path / "half").merge(halves[1])
    keys = ["site", "kpi", "category"]
    left, right = (each.table.sort_values(keys).reset_index(drop=True) for each in (merged, whole))
    pd.testing.assert_frame_equal(left, right, rtol=1e-5, atol=1e-7, check_like=True)
    with pytest.raises(InputError, match=r"differ in sites.*embed"):
        merged.merge(compare(lens, stories(2), sites="embed"))


def test_pairs_are_tested_as_pairs_and_crossed_columns_within_each_other(lens: Inspector, whole: Comparison) -> None:
    found = whole.contrasts(permutations=200)
    assert set(found["tested"]) == {"paired"}
    assert found.attrs["examples"] == "12 of 12"
    alone = [{k: v for k, v in story.items() if k != "pair"} for story in stories()]
    crossed = compare(lens, alone, sites="blocks.1.resid_post", kpis=["rms"], categories=["category", "length"])
    assert len(crossed.categories) == 4
    main = crossed.contrasts("category", permutations=100)
    assert main["tested"].isin(["unpaired", "none"]).all(), main["note"].tolist()
    assert len(main) == 1
    assert list(crossed.table.columns[:5]) == ["site", "kpi", "category", "length", "crossed"]


def test_memory_keeps_so_many_examples_and_says_so(lens: Inspector) -> None:
    texts = [{"text": f"{WORDS[i % 19]} {WORDS[i * 7 % 19]} {i}", "category": "ab"[i % 2]} for i in range(54)]
    few = compare(lens, texts, sites="blocks.1.resid_post", keep=10)
    assert (few.n, len(few.examples)) == (54, 20)
    assert few.contrasts(permutations=50).attrs["examples"] == "20 of 54"
    everything = compare(lens, texts, sites="blocks.1.resid_post")
    for column in ("n", "mean", "sd", "min", "max", "pooled"):
        assert few.table[column].to_numpy() == pytest.approx(everything.table[column].to_numpy(), nan_ok=True), column
    backwards = compare(lens, texts[::-1], sites="blocks.1.resid_post", keep=10)
    assert set(backwards.examples["text"]) == set(few.examples["text"]), "which are kept depends on the examples alone"


# ---- the folder


def test_a_run_that_was_cut_goes_on_and_gives_the_same(
    lens: Inspector, whole: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 1)
    out = tmp_path / "run"

    def cut(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(lens, stories(), sites=SITES, batch_size=4, out=out, progress=cut)
    kept = Comparison.load(out)
    assert (kept.complete, kept.n) == (False, 8)
    (out / "part-00009.part").write_bytes(b"torn")  # what a kill in the middle of a write leaves
    with pytest.raises(InputError, match="not empty"):
        compare(lens, stories(), sites=SITES, batch_size=4, out=out)
    with pytest.raises(InputError, match="differ in kpis"):
        compare(lens, stories(), sites=SITES, kpis=["mean"], batch_size=4, out=out, resume=True)
    with pytest.raises(InputError, match="other examples: they differ within window 1"):
        compare(lens, stories()[::-1], sites=SITES, batch_size=4, out=out, resume=True)
    ran = []
    handle = lens.model.register_forward_hook(lambda *_: ran.append(1))
    done = compare(lens, stories(), sites=SITES, batch_size=4, out=out, resume=True)
    handle.remove()
    assert len(ran) == 1, "what was finished is not run again"
    same(done, whole, 1e-5)
    same(Comparison.load(out), done)
    assert Comparison.load(out).complete


def test_a_full_disk_is_told_and_what_was_finished_stays(
    lens: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 1)
    real, calls = os.replace, []

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("part-00001.parquet"):
            raise OSError(28, "No space left on device")
        calls.append(target)
        real(source, target)

    monkeypatch.setattr("crosslens.tasks.comparison_store.os.replace", full)
    with pytest.raises(InputError, match=r"No space left.*1 windows are kept, and resume"):
        compare(lens, stories(), sites="embed", batch_size=4, out=tmp_path / "run")
    assert Comparison.load(tmp_path / "run").n == 4
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_store_that_cannot_be_read_says_why(whole: Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no comparison"):
        Comparison.load(tmp_path)
    whole.save(tmp_path / "kept")
    same(Comparison.load(tmp_path / "kept"), whole)
    with pytest.raises(InputError, match="not empty"):
        whole.save(tmp_path / "kept")
    state = tmp_path / "kept" / "comparison.json"
    text = state.read_text()
    state.write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(InputError, match="schema 99"):
        Comparison.load(tmp_path / "kept")
    state.write_text(text[:50])
    with pytest.raises(InputError, match="cannot be read"):
        Comparison.load(tmp_path / "kept")


# ---- bad input


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "no examples"),
        ([{"text": "a"}], "no column 'category'"),
        ([{"txt": "a", "category": "b"}], "no column 'text'; did you mean 'txt'"),
        ([{"text": " ", "category": "b"}], "must be a text that is not empty"),
        ([{"text": 3, "category": "b"}], "'text' is 3"),
        ([{"text": "a", "category": None}], "every example needs a category"),
        ([{"text": "a " * 600_000, "category": "b"}], r"example 1 has 600,001 tokens; there must be 1 to 1,024"),
        (["a"], "an example is a mapping"),
        (3, "give a file"),
        ("nowhere.csv", "no file nowhere.csv"),
        ("x.txt", "must end in .csv"),
    ],
)
def test_bad_examples_are_refused(lens: Inspector, examples: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compare(lens, examples, sites="embed")


def test_bad_options_are_refused(lens: Inspector) -> None:
    with pytest.raises(InputError, match="there is no 'meen'; there are count"):
        compare(lens, stories(), sites="embed", kpis=["meen"])
    with pytest.raises(SiteError, match="nearest"):
        compare(lens, stories(), sites="blocks.1.resid_pots")
    with pytest.raises(InputError, match="known family"), open_inspector("hooks", torch.nn.Linear(2, 2)) as other:
        compare(other, stories(), sites="module:")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_of_every_kind_give_the_same(lens: Inspector, whole: Comparison, tmp_path: Path, suffix: str) -> None:
    frame, path = pd.DataFrame(stories()), tmp_path / f"stories.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    same(compare(lens, path, sites=SITES, batch_size=4), whole, 1e-9)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,category\n", "no examples"),
        ("a.csv", "text,category\nsch\xf6n,b\n".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", b'{"text": "a", "category": "b"}\n{"text":', "line 2"),
        ("a.parquet", b"PAR1 no", "cannot be read as parquet"),
    ],
)
def test_bad_files_are_refused(lens: Inspector, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        compare(lens, tmp_path / name, sites="embed")


def test_odd_corpora_still_give_what_they_can(lens: Inspector) -> None:
    one = compare(lens, stories()[::2], sites="blocks.1.resid_post")
    assert len(one.table)
    assert one.contrasts().empty
    once = compare(lens, [*stories()[::2], stories()[1]], sites="blocks.1.resid_post")
    assert set(once.contrasts(permutations=20)["n_b"]) == {1}
    equal = compare(lens, [{"text": "same", "category": c} for c in "ab" for _ in range(4)], sites="embed")
    assert equal.contrasts(permutations=20)["g"].eq(0).all()


def test_not_a_number_in_one_category_is_found(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(" o")["input_ids"][0]] = torch.nan
    texts = [{"text": f"a{' o' if c == 'sick' else ' a'}", "category": c} for c in ("sick", "well") for _ in range(5)]
    with open_inspector("hooks", model, tokenizer) as lens:
        found = compare(lens, texts, sites=["embed", "blocks.2.resid_post"])
    table = found.table.set_index(["site", "kpi", "category"])
    assert table.loc[("embed", "nan", "sick"), "mean"] == 32
    assert table.loc[("embed", "nan", "well"), "mean"] == 0
    contrasts = found.contrasts(permutations=50).set_index(["site", "kpi"])
    assert contrasts.loc[("blocks.2.resid_post", "nan"), "g"] == np.inf
    assert contrasts.loc[("embed", "nan"), "p_perm"] < 0.05
    found.to_html(tmp_path / "page.html")


# ---- the command


def test_the_command_prints_the_strongest_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "stories.csv", tmp_path / "out"
    pd.DataFrame(stories()).to_csv(path, index=False)
    arguments = ["crosslens", "compare", str(path), "--model", "tiny-llama", "--out", str(out), "--permutations", "100"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "The 10 strongest differences" in shown
    assert "in pairs" in shown
    assert {"comparison.html", "table.csv", "ranking.csv", "comparison.json", "part-00000.parquet"} <= {
        each.name for each in out.iterdir()
    }
    assert "ocean" in (out / "comparison.html").read_text()
    shutil.rmtree(out)
    monkeypatch.setattr("sys.argv", [*arguments, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert len(found["ranking"]) == 10
    assert found["examples"] == 12


def test_public_names() -> None:
    assert compare is module.compare
    assert set(read_examples.__annotations__) >= {"source", "text", "categories", "pair"}
    assert "nan" in KPIS
