"""The two workloads on tiny models: what they prepare, that backends and reference agree, and that errors show."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from crosslens.adapters import InputError, Run, open_inspector
from crosslens.adapters.conformance import FAMILIES
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.conformance.oracle import Oracle
from crosslens.tasks import Task, load_model, load_task, tasks
from crosslens.tasks.characters import Characters
from crosslens.tasks.data import read_prompts, read_stories
from crosslens.tasks.ioi import IOI, curves
from crosslens.tasks.kpis import NAMES

TASKS = ["ioi", "characters"]
Figures = Mapping[str, NDArray[np.float64]]


def outcome(task: Task, model: nn.Module, work: Any) -> Figures:
    with open_inspector("hooks", model) as lens:
        return task.run(lens, work)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word and mark of the data, as large tokenizers have for these words."""
    prompts = read_prompts()
    texts = [*read_stories()["text"], *prompts.templates.values(), " ".join(prompts.names)]
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each character, spaces too: names that begin alike part inside the answer."""
    letters = sorted(
        {c for text in read_prompts().templates.values() for c in text} | set(" ".join(read_prompts().names))
    )
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["<unk>", *letters])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


# --- the registry ---


def test_tasks_by_name() -> None:
    names = [task.name for task in tasks()]
    assert names[:2] == TASKS
    assert len(set(names)) == len(names) > 10
    assert isinstance(load_task("ioi"), IOI)
    assert isinstance(load_task("characters"), Characters)
    for task in tasks():
        assert task.question.endswith("?")
        assert task.source
        assert task.needs or task.needs_any


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no task 'charakters'; did you mean 'characters'\? known: ioi, characters, "):
        load_task("charakters")


# --- both tasks: every family, every size of work, every error ---


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TASKS)
def test_plain_hooks_agree_with_the_reference(name: str, family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="smoke")
    reference = task.reference(model, work)
    score = task.score(outcome(task, model, work), reference, work, str(dtype).removeprefix("torch."))
    assert score.right
    assert score.max_rel_error <= score.noise
    assert score.rank_agreement > 0.999
    assert score.effect > 10
    perfect = task.score(reference, reference, work, "float32")
    assert (perfect.max_abs_error, perfect.max_rel_error, perfect.right) == (0.0, 0.0, True)
    assert perfect.rank_agreement == pytest.approx(1)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("wrong", ["off", "missing", "infinite"])
def test_a_wrong_figure_anywhere_is_not_right(llama: tuple[nn.Module, Any], name: str, wrong: str) -> None:
    model, tokenizer = llama
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="smoke")
    right = task.reference(model, work)
    for key in ("recovered", "heads", "clean", "corrupt") if name == "ioi" else ("kpis",):
        broken = copy.deepcopy(dict(right))
        flat = broken[key].reshape(-1)
        at = np.flatnonzero(np.isfinite(flat) & (flat != 0))[-1]
        flat[at] = {"off": flat[at] * 1.01, "missing": np.nan, "infinite": np.inf}[wrong]
        score = task.score(broken, right, work, "float32")
        assert not score.right
        assert score.max_abs_error > 0
        assert score.max_rel_error > score.noise


@pytest.mark.parametrize("name", TASKS)
def test_work_is_the_same_each_time(llama: tuple[nn.Module, Any], name: str) -> None:
    model, tokenizer = llama
    before = set(vars(tokenizer)), tokenizer.padding_side, tokenizer("a")
    first, again = (load_task(name).prepare(model, tokenizer, size="full") for _ in range(2))
    assert repr(first) == repr(again)
    assert (set(vars(tokenizer)), tokenizer.padding_side, tokenizer("a")) == before


@pytest.mark.parametrize("name", TASKS)
def test_progress_ends_at_its_total(llama: tuple[nn.Module, Any], name: str) -> None:
    model, tokenizer = llama
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="smoke")
    for compute in (lambda seen: task.reference(model, work, seen), lambda seen: task.run(lens, work, seen)):
        steps: list[tuple[int, int]] = []
        with open_inspector("hooks", model) as lens:
            compute(lambda done, total, steps=steps: steps.append((done, total)))
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert steps[-1][0] == steps[-1][1]
        assert len({total for _, total in steps}) == 1


class Arguments(nn.Module):
    """Keeps the arguments of every forward of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.handle = model.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        self.seen.append({**kwargs, "attention": module.config._attn_implementation})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TASKS)
def test_the_bare_forward_does_the_same_work_as_a_step(name: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model("llama", dtype=dtype)
    task = load_task(name)
    work = task.prepare(model, tokenizer, size="default")
    with open_inspector("hooks", model) as lens:
        step = task.step(lens, work)
        arguments = Arguments(model)
        run = step()
    bare = task.bare(model, work)()
    arguments.handle.remove()
    ours, theirs = arguments.seen
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key], key
    assert isinstance(run, Run)
    assert run.logits.shape == bare.logits.shape
    assert not bare.logits.requires_grad
    if name == "characters":
        assert ours["attention"] == "eager"
        assert "attention_mask" in ours
        assert list(run) == work.sites
        torch.testing.assert_close(run.logits, bare.logits, rtol=0, atol=0)
    else:
        assert len(ours["input_ids"]) == 1
        pair, middle = work.pairs[0], len(work.sites) // 2
        patched = outcome(task, model, work)
        expected = patched["recovered"][0, middle, pair.length - 1] * (patched["clean"] - patched["corrupt"])[0]
        logits = run.logits[0, -1] - bare.logits[0, -1]
        assert (logits[pair.answers[0]] - logits[pair.answers[1]]).item() == pytest.approx(expected, abs=1e-5)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", TASKS)
def test_what_cannot_be_prepared_is_refused(llama: tuple[nn.Module, Any], name: str) -> None:
    model, tokenizer = llama
    with pytest.raises(InputError, match="tokenizer"):
        load_task(name).prepare(model, None, size="smoke")
    with pytest.raises(InputError, match="known family, not Linear"):
        load_task(name).prepare(nn.Linear(2, 2), tokenizer, size="smoke")


# --- ioi ---


def test_pairs_differ_in_one_token_where_names_are_tokens(llama: tuple[nn.Module, Any]) -> None:
    tokenizer = word_tokenizer()
    work = load_task("ioi").prepare(llama[0], tokenizer, size="full")
    assert [len(load_task("ioi").prepare(llama[0], tokenizer, size=size).pairs) for size in ("smoke", "default")] == [
        1,
        2,
    ]
    assert len(work.pairs) == 8
    assert work.sites == [f"blocks.{layer}.resid_post" for layer in range(3)]
    first = work.pairs[0]
    assert tokenizer.decode(first.clean[0]) == "When Mary and John went to the store , John gave a drink to"
    assert tokenizer.decode(first.corrupt[0]) == "When Mary and John went to the store , Mary gave a drink to"
    assert tokenizer.convert_ids_to_tokens(list(first.answers)) == ["Mary", "John"]
    for pair in work.pairs:
        assert pair.clean.shape == pair.corrupt.shape == (1, pair.length)
        assert len(pair.changed) == 1
        assert (pair.clean != pair.corrupt).nonzero()[:, 1].tolist() == pair.changed
        clean, corrupt = (ids[0, pair.changed[0]].item() for ids in (pair.clean, pair.corrupt))
        assert (corrupt, clean) == pair.answers  # whoever acts again is not the one who receives


def test_names_of_several_tokens_are_exchanged_whole(llama: tuple[nn.Module, Any]) -> None:
    for tokenizer in (letter_tokenizer(), llama[1]):
        for pair in load_task("ioi").prepare(llama[0], tokenizer, size="full").pairs:
            assert pair.clean.shape == pair.corrupt.shape == (1, pair.length)
            assert len(pair.changed) > 1
            assert pair.changed[-1] - pair.changed[0] < 4  # within one name
            assert pair.answers[0] != pair.answers[1]


def test_a_prompt_goes_on_to_where_the_answers_part(
    monkeypatch: pytest.MonkeyPatch, llama: tuple[nn.Module, Any]
) -> None:
    prompts = read_prompts()
    monkeypatch.setattr("crosslens.tasks.data.read_prompts", lambda: type(prompts)(prompts.templates, ("Mary", "Mark")))
    tokenizer = letter_tokenizer()
    pair = load_task("ioi").prepare(llama[0], tokenizer, size="smoke").pairs[0]
    assert "".join(pair.tokens).endswith("gave a drink to Mar")
    assert tokenizer.convert_ids_to_tokens(list(pair.answers)) == ["y", "k"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_of_what_is_recovered(family: str) -> None:
    model, tokenizer = tiny_model(family, dtype=torch.float64)
    task = IOI()
    work = task.prepare(model, tokenizer, size="smoke")
    pair = work.pairs[0]
    for result in (outcome(task, model, work), task.reference(model, work)):
        recovered = result["recovered"][0]
        assert recovered.shape == (3, pair.length)
        # before the names differ the streams are equal; after the last block only the last position is read
        assert np.abs(recovered[:, : pair.changed[0]]).max() < 1e-9
        assert np.abs(recovered[-1, :-1]).max() < 1e-9
        assert recovered[-1, -1] == pytest.approx(1, abs=1e-9)
        # the changed name has not left its positions before the first block's attention
        assert np.abs(recovered[:-1, pair.changed]).max() > 0.01
        assert result["heads"].shape == (3, 4)
        assert np.abs(result["heads"]).min() > 1e-9
        with torch.no_grad():
            for key in ("clean", "corrupt"):
                logits = model(getattr(pair, key)).logits[0, -1]
                expected = logits[pair.answers[0]] - logits[pair.answers[1]]
                assert result[key][0] == pytest.approx(expected.item(), abs=1e-9)


def test_the_reference_leaves_out_only_what_is_zero(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    pair = IOI().prepare(model, tokenizer, size="smoke").pairs[0]
    oracle = Oracle(model)
    clean, corrupt = oracle.run(pair.clean).sites, oracle.run(pair.corrupt).sites
    for layer in range(3):
        a, b = (sites[f"blocks.{layer}.resid_post"][0] for sites in (clean, corrupt))
        differ = [p for p in range(pair.length) if not torch.equal(a[p], b[p])]
        assert differ[0] == pair.changed[0]


def test_a_shorter_pair_has_no_figures_beyond_its_end(llama: tuple[nn.Module, Any]) -> None:
    task = IOI()
    work = task.prepare(llama[0], word_tokenizer(), size="full")
    work = dataclasses.replace(work, pairs=work.pairs[:3])
    lengths = [pair.length for pair in work.pairs]
    assert len(set(lengths)) > 1
    result = outcome(task, llama[0], work)
    for i, length in enumerate(lengths):
        assert np.isfinite(result["recovered"][i, :, :length]).all()
        assert np.isnan(result["recovered"][i, :, length:]).all()
    table = task.table(result, work)
    assert list(table.columns) == ["pair", "layer", "position", "token", "changed", "recovered"]
    assert len(table) == 3 * sum(lengths)
    assert table["recovered"].notna().all()
    assert table["changed"].sum() == 3 * 3


def test_the_headline_says_where_the_answer_moves(llama: tuple[nn.Module, Any]) -> None:
    task = IOI()
    work = task.prepare(llama[0], word_tokenizer(), size="smoke")
    pair = work.pairs[0]
    recovered = np.zeros((1, 3, pair.length))
    recovered[0, 0, pair.changed] = 1.0
    moved, stays = recovered.copy(), recovered.copy()
    moved[0, 1:, -1] = 1.0
    stays[0, :, pair.changed] = 1.0
    heads = np.zeros((3, 4))
    heads[1, 2] = 0.25
    at = rf"the changed name \('Mary', position {pair.changed[0]} of {pair.length}\)"
    assert re.fullmatch(
        f"the answer moves from {at} to the last position around layer 1 of 3; of 12 heads, 1\\.2 alone brings back "
        "0\\.25 of it",
        task.headline({"recovered": moved, "heads": heads}, work),
    )
    assert "stays at the changed name" in task.headline({"recovered": stays, "heads": heads}, work)
    assert [c.tolist() for c in curves({"recovered": moved}, work)] == [[1, 0, 0], [0, 1, 1]]


# --- characters ---


def test_stories_are_batched_by_length_and_padded_on_the_right(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    work = Characters().prepare(model, tokenizer, size="full")
    assert len(work.stories) == len(read_stories()) >= 200
    assert sorted(row for batch in work.batches for row in batch.rows) == list(range(len(work.stories)))
    widths = []
    for batch in work.batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert len(batch.rows) <= 16
        for row, tokens, real in zip(batch.rows, ids, mask, strict=True):
            length = work.stories["tokens"][row]
            assert real.tolist() == [1] * length + [0] * (ids.shape[1] - length)
            assert tokenizer.decode(tokens[:length]) == work.stories["text"][row]
            widths.append(length)
    assert widths == sorted(widths)


def test_default_has_every_telling_of_half_of_the_stories(llama: tuple[nn.Module, Any]) -> None:
    stories = Characters().prepare(*llama, size="default").stories
    whole = read_stories()
    assert stories["template"].nunique() * 2 == whole["template"].nunique()
    assert stories["id"].tolist() == whole[whole["template"].isin(stories["template"])]["id"].tolist()


def test_smoke_is_a_balanced_part(llama: tuple[nn.Module, Any]) -> None:
    stories = Characters().prepare(*llama, size="smoke").stories
    assert len(stories) == 24
    assert (stories.groupby(["attribute", "category"]).size() == 3).all()
    assert (stories.groupby("pair").size() == 2).all()


def test_every_asked_site_has_its_figures(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    task = Characters()
    work = task.prepare(model, tokenizer, size="smoke")
    kinds = ("attn.pattern", "attn.out", "mlp.post", "mlp.out", "resid_post")
    assert work.sites == [f"blocks.{layer}.{kind}" for layer in range(3) for kind in kinds]
    figures = outcome(task, model, work)["kpis"]
    assert figures.shape == (24, 15, len(NAMES))
    entropy = figures[:, :, NAMES.index("entropy")]
    patterns = [site.endswith("pattern") for site in work.sites]
    assert (entropy[:, patterns] > 0).all()
    assert np.isnan(entropy[:, ~np.array(patterns)]).all()
    assert np.isfinite(np.delete(figures, NAMES.index("entropy"), axis=2)).all()
    tokens = work.stories["tokens"].to_numpy()
    count = figures[:, :, NAMES.index("count")]
    assert (count[:, work.sites.index("blocks.1.mlp.post")] == tokens * 80).all()
    assert (count[:, work.sites.index("blocks.1.attn.pattern")] == 4 * tokens * (tokens + 1) / 2).all()


def test_the_table_ranks_where_categories_differ(llama: tuple[nn.Module, Any]) -> None:
    model, _ = llama
    task = Characters()
    work = task.prepare(model, word_tokenizer(), size="full")
    rng = np.random.default_rng(0)
    figures = rng.normal(loc=1, scale=0.1, size=(len(work.stories), len(work.sites), len(NAMES)))
    figures[:, :, NAMES.index("count")] = 100.0
    site, kpi = work.sites.index("blocks.2.mlp.out"), NAMES.index("rms")
    figures[work.stories["category"] == "nurse", site, kpi] += 10
    result = {"kpis": figures}
    table = task.table(result, work)
    assert len(table) == 15 * len(work.sites) * len(NAMES)
    assert list(table.columns[:4]) == ["attribute", "category", "site", "kpi"]
    first = table.iloc[0]
    assert tuple(first[["attribute", "category", "site", "kpi"]]) == ("occupation", "nurse", "blocks.2.mlp.out", "rms")
    assert first["difference"] == pytest.approx(10, abs=0.2)
    assert first["n"] == 14
    assert first["q"] < 1e-6
    ranked = table["g"].dropna().abs()
    assert ranked.is_monotonic_decreasing
    assert not set(table.dropna(subset="g")["kpi"]) & {"count", "zero_fraction"}
    assert table[table["kpi"] == "rms"]["mean"].between(0.8, 11.2).all()
    # of noise, not more than chance: other attributes have no story to tell
    assert (table[table["attribute"] != "occupation"]["q"] < 0.05).mean() < 0.01
    assert "occupation at blocks.2.mlp.out rms (nurse, g = +" in task.headline(result, work)
    assert "differ in length" not in task.headline(result, work)


def test_rounding_is_no_difference(llama: tuple[nn.Module, Any]) -> None:
    task = Characters()
    work = task.prepare(*llama, size="smoke")
    figures = 1 + 1e-7 * np.random.default_rng(0).normal(size=(24, len(work.sites), len(NAMES)))
    table = task.table({"kpis": figures}, work)
    assert table["g"].isna().all()
    assert table["q"].isna().all()
    assert task.headline({"kpis": figures}, work) == (
        "no key figure differs between the categories by more than rounding"
    )


def test_the_headline_warns_of_pairs_that_differ_in_length(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama  # a token for each byte: "German" and "Brazilian" are not equally long
    task = Characters()
    work = task.prepare(model, tokenizer, size="smoke")
    headline = task.headline(outcome(task, model, work), work)
    assert "of the pairs differ in length with this tokenizer" in headline
    for attribute in ("nationality", "gender", "age", "occupation"):
        assert f"{attribute} at blocks." in headline


# --- a real model: what is known of it must come out ---


@pytest.fixture(scope="module")
def smollm2() -> tuple[nn.Module, Any]:
    return load_model("smollm2-135m")


@pytest.mark.real_model
def test_ioi_finds_what_is_known(smollm2: tuple[nn.Module, Any]) -> None:
    model, tokenizer = smollm2
    task = IOI()
    work = task.prepare(model, tokenizer, size="smoke")
    early, late = work.sites[:11:5], work.sites[25::2]
    work = dataclasses.replace(work, sites=early + late, heads=(work.heads[0][23:26:2], work.heads[1]))
    assert [len(pair.changed) for pair in task.prepare(model, tokenizer, size="full").pairs] == [1] * 8
    result = outcome(task, model, work)
    assert result["clean"][0] > 3  # Mary, clearly
    assert result["corrupt"][0] < -3  # John, clearly
    at_name, at_end = curves(result, work)
    assert at_name[:3] == pytest.approx(1, abs=0.05)  # early, the name decides
    assert at_end[:3] == pytest.approx(0, abs=0.05)
    assert at_name[3:] == pytest.approx(0, abs=0.05)  # late, it has gone to where the answer is read
    assert at_end[3:] == pytest.approx(1, abs=0.1)
    others = np.delete(result["recovered"][0], [work.pairs[0].changed[0], work.pairs[0].length - 1], axis=1)
    assert np.abs(others).max() < 0.2


@pytest.mark.real_model
def test_characters_are_equally_long_and_differ(smollm2: tuple[nn.Module, Any]) -> None:
    model, tokenizer = smollm2
    task = Characters()
    stories = task.prepare(model, tokenizer, size="full").stories
    assert stories["tokens"].between(25, 45).all()
    assert (stories.groupby("pair")["tokens"].nunique() == 1).all()
    work = task.prepare(model, tokenizer, size="smoke")
    figures = outcome(task, model, work)
    assert figures["kpis"][:, :, NAMES.index("abs_max")].max() > 1e4  # the massive activations of this family
    assert "differ most: " in task.headline(figures, work)
