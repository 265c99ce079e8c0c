"""`compare`: the figures are those of the texts, whatever the batches, the backend, the store or the split."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crosslens.adapters import InputError, Inspector, SiteError, UnsupportedError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.conformance.oracle import Oracle
from crosslens.tasks import Comparison, compare
from crosslens.tasks.accumulators import UnitMoments
from crosslens.tasks.category import Sums, all_joined
from crosslens.tasks.comparison import Facts
from crosslens.tasks.engine import fields
from crosslens.tasks.examples import Corpus
from crosslens.tasks.kernels import empty
from crosslens.tasks.window import Window, windows

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


def test_batches_windows_and_order_play_no_part(lens: Inspector, whole: Comparison) -> None:
    for size, window in ((1, 2), (3, 5), (12, 512)):
        same(compare(lens, iter(stories()), sites=SITES, batch_size=size, window=window), whole, 1e-5)


def test_a_source_is_not_read_ahead_of_its_window(lens: Inspector) -> None:
    given: list[int] = []

    def source() -> Iterator[dict[str, str]]:
        for i in range(30):
            given.append(i)
            yield {"text": f"{WORDS[i % 19]} {i}", "category": "ab"[i % 2]}

    ahead: list[int] = []
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        ahead.append(len(given) - done)
        told.append((done, total))

    compare(lens, source(), sites="embed", batch_size=2, window=5, progress=progress)
    assert max(ahead) <= 5
    assert told[-1] == (30, 0)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    compare(lens, stories(), sites="embed", batch_size=5, progress=lambda *now: told.append(now))
    assert set(told[-3:]) == {(12, 12), *(now for now in told[-3:] if now[1] == 12)}


def test_nothing_runs_where_the_last_example_is_wrong(lens: Inspector, tmp_path: Path) -> None:
    ran: list[int] = []
    handle = lens.model.register_forward_hook(lambda *_: ran.append(1))
    wrong = [*stories(), {"text": "a b c d " * 400, "category": "long"}]
    with pytest.raises(InputError, match=r"example 13 has 1,60\d tokens \(3,200 characters\)"):
        compare(lens, wrong, sites="embed", out=tmp_path / "run")
    handle.remove()
    assert not ran
    assert not (tmp_path / "run").exists()


def test_shards_merge_to_the_whole(lens: Inspector, whole: Comparison) -> None:
    options: dict[str, Any] = {"sites": SITES, "batch_size": 4, "window": 3}
    parts = [compare(lens, stories(), shard=(i, 3), **options) for i in range(3)]
    assert [part.n for part in parts] == [6, 3, 3]
    sent = [pickle.loads(pickle.dumps(part)) for part in parts]  # as between processes
    for order in ([0, 1, 2], [2, 0, 1]):
        same(functools.reduce(Comparison.merge, [sent[i] for i in order]), whole, 1e-5)


def test_two_halves_merge_to_the_whole(lens: Inspector, whole: Comparison, tmp_path: Path) -> None:
    frame = pd.DataFrame(stories())
    halves = [compare(lens, frame.iloc[part], sites=SITES) for part in (slice(0, 5), slice(5, 12))]
    halves[0].save(tmp_path / "half")
    merged = Comparison.load(tmp_path / "half").merge(halves[1])
    keys = ["site", "kpi", "category"]
    left, right = (each.table.sort_values(keys).reset_index(drop=True) for each in (merged, whole))
    pd.testing.assert_frame_equal(left, right, rtol=1e-5, atol=1e-7, check_like=True)
    assert merged.complete
    with pytest.raises(InputError, match=r"differ in sites.*4 and|differ in sites.*embed"):
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


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_and_order_of_windows_gives_the_same(data: st.DataObject) -> None:
    """Of figures made up here, with gaps and with more examples than are kept."""
    sites, kpis = ["embed", "blocks.0.attn.pattern"], ["mean", "entropy", "nan"]
    facts = Facts(
        sites, kpis, ["category"], backend="", library="", model="", weights="", dtype="", seed=0, keep=4,
        directions={"embed": 3}, units={"embed": 3},
    )  # fmt: skip
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = [{"text": f"t {i}", "category": "ab"[rng.integers(2)]} for i in range(data.draw(st.integers(1, 20)))]
    groups = list(windows(Corpus(rows), data.draw(st.integers(1, 7))))
    made = []
    for number, group in enumerate(groups):
        figures = rng.normal(size=(len(group), len(facts.features))) * 10.0 ** rng.integers(-3, 4)
        figures[rng.random(figures.shape) < 0.2] = rng.choice([np.nan, np.inf])
        vectors = rng.normal(size=(len(group), 3)).astype(np.float32)
        sums = {}
        for label in dict.fromkeys(e.categories for e in group):
            own = [i for i, e in enumerate(group) if e.categories == label]
            elements, units = rng.normal(size=(len(own), 2, 5, 6)), UnitMoments(3)
            parts = [[fields(torch.from_numpy(x[None]), None, False, ())[0] for x in row] for row in elements]
            units.update(torch.from_numpy(vectors[own]))
            sums[label] = Sums(all_joined(np.array(parts)), units)
        made.append(Window(number, group, [1] * len(group), figures, vectors, sums))
    whole = Comparison(facts)
    for window in made:
        whole.add(window)
    parts = [Comparison(facts) for _ in range(data.draw(st.integers(1, 4)))]
    for window in made:
        parts[data.draw(st.integers(0, len(parts) - 1))].add(window)
    merged = functools.reduce(Comparison.merge, data.draw(st.permutations(parts)))
    assert merged.n == whole.n == len(rows)
    keys = ["site", "kpi", "category"]
    left, right = (
        each.table.drop(columns=[c for c in each.table if c.startswith("q")]).sort_values(keys).reset_index(drop=True)
        for each in (merged, whole)
    )
    pd.testing.assert_frame_equal(left, right, rtol=1e-9, atol=1e-12)
    assert merged.examples.equals(whole.examples)
    np.testing.assert_array_equal(merged.values, whole.values)
    np.testing.assert_array_equal(merged.vectors["embed"], whole.vectors["embed"])


def test_memory_keeps_so_many_examples_and_says_so(lens: Inspector) -> None:
    texts = [{"text": f"{WORDS[i % 19]} {WORDS[i * 7 % 19]} {i}", "category": "ab"[i % 2]} for i in range(54)]
    options: dict[str, Any] = {"sites": "blocks.1.resid_post", "kpis": ["mean", "rms", "max"]}
    few = compare(lens, texts, keep=10, **options)
    assert (few.n, len(few.examples)) == (54, 20)
    everything = compare(lens, texts, **options)
    for column in ("n", "mean", "sd", "min", "max", "pooled"):
        assert few.table[column].to_numpy() == pytest.approx(everything.table[column].to_numpy(), nan_ok=True), column
    backwards = compare(lens, texts[::-1], keep=10, **options)
    assert set(backwards.examples["text"]) == set(few.examples["text"]), "which are kept depends on the examples alone"
    found, all_ = few.contrasts(permutations=50), everything.contrasts(permutations=50)
    assert found.attrs["examples"] == "20 of 54"
    of_all = ["n_a", "n_b", "mean_a", "mean_b", "g", "g_low", "g_high", "t", "df", "p_welch", "q_bh", "q_by"]
    pd.testing.assert_frame_equal(found[of_all], all_[of_all], rtol=1e-9)
    assert set(found["note"]) == {"AUROC and permutations of kept examples"}
    assert not np.allclose(found["auroc"], all_["auroc"])
    values = {c: few.values[few.examples["category"] == c, 0] for c in "ab"}
    wins = [(x > y) + (x == y) / 2 for x in values["a"] for y in values["b"]]
    assert found["auroc"][0] == pytest.approx(np.mean(wins))
    pairs = [{**text, "pair": f"item {i // 2}"} for i, text in enumerate(texts)]
    paired = compare(lens, pairs, keep=10, **options).contrasts(permutations=50)
    assert set(paired["tested"]) == {"paired"}
    assert set(paired["n_a"]) == {10}, "kept pairs are whole"
    assert set(paired["note"]) == {"of kept examples"}


def test_many_categories_are_each_held_to_the_rest(lens: Inspector) -> None:
    texts = [{"text": f"{WORDS[i]} {WORDS[j]}", "category": WORDS[i]} for i in range(9) for j in range(2)]
    found = compare(lens, texts, sites="embed", kpis=["mean"])
    assert len(found.categories) == 9
    contrasts = found.contrasts(permutations=20)
    assert set(contrasts["b"]) == {"rest"}
    assert len(contrasts) == 9
    assert len(found.contrasts(permutations=20, between=[("the", "cat")])) == 1
    assert found.omnibus(permutations=20)["categories"].tolist() == [9]


def test_directions_and_units_are_of_the_mean_over_real_tokens(lens: Inspector) -> None:
    sites = ["blocks.2.resid_post", "blocks.1.attn.z"]
    found = compare(lens, stories(), sites="embed", directions=sites, units=sites, batch_size=5)
    oracle = Oracle(lens.model, attn_implementation="eager")
    truth: dict[str, list[Any]] = {site: [] for site in sites}
    for text in found.examples["text"]:
        run = oracle.run(torch.tensor([lens.tokenizer(text)["input_ids"]]))
        for site in sites:
            truth[site].append(run.sites[site][0].double().mean(0).flatten().numpy())
    for site in sites:
        np.testing.assert_allclose(found.vectors[site], np.stack(truth[site]), rtol=1e-4, atol=1e-5)
    table = found.directions(permutations=30)
    assert table["site"].tolist() == sites
    assert table["n"].tolist() == [12, 12]
    assert (table["p"] <= 1).all()
    units = found.units()
    assert len(units) == sum(found.facts.units.values())
    one = units[(units["site"] == sites[1]) & (units["unit"] == 5)].iloc[0]
    values = np.stack(truth[sites[1]])[:, 5]
    a = (found.examples["category"] == "sea: blue").to_numpy()
    welch = stats.ttest_ind(values[a], values[~a], equal_var=False)
    assert [one["t"], one["p_welch"]] == pytest.approx([welch.statistic, welch.pvalue], rel=1e-3)
    with pytest.raises(InputError, match="no vectors were kept"):
        compare(lens, stories(), sites="embed").directions()
    with pytest.raises(InputError, match="no units were kept"):
        compare(lens, stories(), sites="embed").units()
    for name in ("directions", "units"):
        with pytest.raises(InputError, match="no vector of fixed length"):
            compare(lens, stories(), sites="embed", **{name: "blocks.1.attn.pattern"})


def test_what_shows_in_no_figure_is_found_by_its_direction(lens: Inspector) -> None:
    facts = compare(lens, stories(), sites="embed", kpis=["mean", "rms"], directions="embed").facts
    rng = np.random.default_rng(0)
    n, d = 40, facts.directions["embed"]
    examples = list(Corpus([{"text": f"t {i}", "category": "ab"[i % 2]} for i in range(n)]))
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    vectors[::2, :3] += 4  # the categories lie apart in some directions; no figure differs
    sums = {("a",): Sums(empty(1), UnitMoments(0)), ("b",): Sums(empty(1), UnitMoments(0))}
    found = Comparison(facts)
    found.add(Window(0, examples, [1] * n, rng.normal(size=(n, 2)), vectors, sums))
    assert found.contrasts(permutations=200)["p_maxt"].min() > 0.05
    table = found.directions(permutations=200)
    assert table["auroc"][0] > 0.9
    assert table["p"][0] < 0.05
    vectors[3, 1] = np.nan
    sick = Comparison(facts)
    sick.add(Window(0, examples, [1] * n, rng.normal(size=(n, 2)), vectors, sums))
    assert sick.directions(permutations=20).attrs["left_out"] == 1


def test_patterns_alone_have_entropy(lens: Inspector) -> None:
    found = compare(lens, stories(), sites=["blocks.1.attn.pattern", "embed"])
    assert set(found.table.loc[found.table["kpi"] == "entropy", "site"]) == {"blocks.1.attn.pattern"}
    assert found.table["mean"].notna().all()


# ---- bad input


def test_bad_options_are_refused(lens: Inspector) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kpis": ["meen"]}, "there is no 'meen'; there are count"),
        ({"kpis": "mean"}, "give a list of key figures"),
        ({"sites": []}, "sites is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"keep": 1}, "keep is 1; it must be at least 2"),
        ({"shard": (2, 2)}, "from 0 to n - 1"),
        ({"max_tokens": 3}, "example 1 has 8 tokens|there must be 1 to 3"),
    ]
    for options, says in wrong:
        with pytest.raises(InputError, match=says):
            compare(lens, stories(), **{"sites": "embed", **options})
    with pytest.raises(SiteError, match="nearest"):
        compare(lens, stories(), sites="blocks.1.resid_pots")
    with pytest.raises(InputError, match="there is no category column 'kind'; there are category"):
        compare(lens, stories(), sites="embed").contrasts("kind")
    with pytest.raises(InputError, match="known family"), open_inspector("hooks", torch.nn.Linear(2, 2)) as other:
        compare(other, stories(), sites="module:")


def test_a_text_of_a_million_characters_is_refused(lens: Inspector) -> None:
    with pytest.raises(InputError, match=r"example 1 has \d+,\d+ tokens \(1,000,000 characters\); .* 1 to 1,024"):
        compare(lens, [{"text": "a " * 500_000, "category": "b"}], sites="embed")
    texts = [*stories(), {"text": "a " * 1100, "category": "b"}]
    with pytest.raises(InputError, match=r"example 13 has .* tokens"):  # where it cannot be known before
        compare(lens, iter(texts), sites="embed")


def test_a_site_that_a_backend_cannot_read_is_refused_before_any_work(tmp_path: Path) -> None:
    says = r"does not support capture.module at 'module:model.norm:output'"
    with (
        open_inspector("transformer_lens", *tiny_model("llama")) as other,
        pytest.raises(UnsupportedError, match=says),
    ):
        compare(other, stories(), sites="module:model.norm:output", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_odd_corpora_still_give_what_they_can(lens: Inspector) -> None:
    one = compare(lens, stories()[::2], sites="blocks.1.resid_post", directions="embed")
    assert len(one.table)
    assert one.contrasts().empty
    assert one.ranking().empty
    assert one.directions().empty
    once = compare(lens, [*stories()[::2], stories()[1]], sites="blocks.1.resid_post")
    contrasts = once.contrasts(permutations=20)
    assert set(contrasts["n_b"]) == {1}
    assert set(contrasts["tested"]) == {"none"}
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
