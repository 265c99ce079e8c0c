"""Steering on tiny models: a step by hand, backends against the reference, and that errors show."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector
from crosslens.tasks.base import Result
from crosslens.tasks.data.prompts import read_sentiment
from crosslens.tasks.steering import STRENGTHS, UNSTEERED, Steering, Work

from .broken import FirstStepOnly, IgnoresEdits, PositionsOfTheStep

FAMILIES = ["llama", "gpt2", "gpt_neox"]


def outcome(model: nn.Module, work: Work, backend: str = "hooks") -> Result:
    with open_inspector(backend, model) as lens:
        return Steering().run(lens, work)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def work(llama: tuple[nn.Module, Any]) -> Work:
    return Steering().prepare(*llama, size="smoke")


@pytest.fixture(scope="module")
def reference(llama: tuple[nn.Module, Any], work: Work) -> Result:
    return Steering().reference(llama[0], work)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_agree_with_the_reference(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    work = Steering().prepare(model, tokenizer, size="smoke")
    reference = Steering().reference(model, work)
    score = Steering().score(outcome(model, work), reference, work, str(dtype).removeprefix("torch."))
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > Steering.least_effect


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_agree(llama: tuple[nn.Module, Any], work: Work, reference: Result, backend: str) -> None:
    assert Steering().score(outcome(llama[0], work, backend), reference, work, "float32").right


@pytest.mark.parametrize("broken", [IgnoresEdits, FirstStepOnly, PositionsOfTheStep])
def test_broken_backends_are_caught(
    llama: tuple[nn.Module, Any], work: Work, reference: Result, broken: type[HooksInspector]
) -> None:
    with broken(llama[0]) as lens:
        result = Steering().run(lens, work)
    assert not Steering().score(result, reference, work, "float32").right


def test_the_unsteered_row_is_what_the_model_writes(
    llama: tuple[nn.Module, Any], work: Work, reference: Result
) -> None:
    model, _ = llama
    prompt = work.prompts[0]
    text: Any = model.generate(prompt, max_new_tokens=work.new, min_new_tokens=work.new, do_sample=False)  # type: ignore[operator]
    new = text[:, prompt.shape[1] :]
    with torch.no_grad():
        logits = model(text).logits[0, prompt.shape[1] - 1 : -1].double()
    loss = torch.nn.functional.cross_entropy(logits, new[0]).item()
    result = outcome(model, work)
    for found in (result, reference):
        assert found["tokens"][0, UNSTEERED].tolist() == new[0].tolist()
        assert found["loss"][0, UNSTEERED] == pytest.approx(loss, abs=1e-4)
    assert np.array_equal(result["tokens"][0], result["tokens_uncached"])
    np.testing.assert_allclose(result["gap"][0], result["gap_uncached"], atol=1e-4)


def test_the_second_token_by_hand(llama: tuple[nn.Module, Any], work: Work, reference: Result) -> None:
    """Plain PyTorch: the direction from single forwards, then a hook that adds it at the last two positions."""
    model, tokenizer = llama
    block = model.get_submodule("model.layers.1")
    seen: list[torch.Tensor] = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output[0, -1].double()))
    with torch.no_grad():
        for pair in list(read_sentiment().pairs.values())[:2]:
            for text in pair:
                model(torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    direction = (seen[0] + seen[2]) / 2 - (seen[1] + seen[3]) / 2
    assert work.site == "blocks.1.resid_post"
    np.testing.assert_allclose(reference["direction"], direction, atol=1e-5)
    strength = len(STRENGTHS) - 1
    first = torch.tensor([[int(reference["tokens"][0, strength, 0])]])
    text = torch.cat([work.prompts[0], first], dim=1)

    def steer(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -2:] += (STRENGTHS[strength] * direction).to(output.dtype)
        return output

    handle = block.register_forward_hook(steer)
    with torch.no_grad():
        logits = model(text).logits[0, -1]
    handle.remove()
    gap = logits[work.words[0]].mean() - logits[work.words[1]].mean()
    assert reference["gap"][0, strength, 1] == pytest.approx(gap.item(), abs=1e-4)
    assert reference["tokens"][0, strength, 1] == logits.argmax().item()


def test_a_random_direction_is_as_long_as_the_difference(
    llama: tuple[nn.Module, Any], work: Work, reference: Result
) -> None:
    model, _ = llama
    vector = work.random[0] * float(np.linalg.norm(reference["direction"]))
    assert work.random.norm(dim=-1).tolist() == pytest.approx([1.0])

    def push(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, -1] += (STRENGTHS[0] * vector).to(output.dtype)
        return output

    handle = model.get_submodule("model.layers.1").register_forward_hook(push)
    with torch.no_grad():
        logits = model(work.prompts[0]).logits[0, -1]
    handle.remove()
    gap = logits[work.words[0]].mean() - logits[work.words[1]].mean()
    assert reference["gap_random"][0, 0] == pytest.approx(gap.item(), abs=1e-4)
    assert reference["gap_random"][0, UNSTEERED] == pytest.approx(reference["gap"][0, UNSTEERED, 0], abs=1e-9)


def test_a_text_may_part_at_a_tie_and_nowhere_else(work: Work, reference: Result) -> None:
    parted = copy.deepcopy(dict(reference))
    parted["tokens"][0, 0, 1:] += 1
    parted["gap"][0, 0, 2:] += 5.0
    parted["loss"][0, 0] += 5.0
    assert not Steering().score(parted, reference, work, "float32").right
    tied = copy.deepcopy(dict(reference))
    tied["margin"][0, 0, 1] = 1e-9
    parted["margin"][0, 0, 1] = 0.0
    assert Steering().score(parted, tied, work, "float32").right
    parted["gap"][0, 0, 0] += 0.01  # before they part everything counts
    assert not Steering().score(parted, tied, work, "float32").right


@pytest.mark.parametrize(
    "name", ["gap", "margin", "scale", "loss", "gap_random", "gap_uncached", "direction", "tokens_uncached"]
)
def test_a_wrong_figure_anywhere_is_not_right(work: Work, reference: Result, name: str) -> None:
    for wrong in (0.01, np.nan, np.inf):
        broken = copy.deepcopy(dict(reference))
        broken[name].reshape(-1)[0] += wrong
        assert not Steering().score(broken, reference, work, "float32").right


def test_what_is_known_can_fail(work: Work, reference: Result) -> None:
    result = copy.deepcopy(dict(reference))
    result["gap"][0, :, 0] = np.arange(len(STRENGTHS))
    result["gap_random"][0] = np.linspace(0.0, 1.9, len(STRENGTHS))
    result["loss"][:] = 1.0
    assert Steering().known(result, work).holds
    chance = copy.deepcopy(result)
    chance["gap_random"] *= -1.1  # a random direction moves the words half as far
    assert not Steering().known(chance, work).holds
    dearer = copy.deepcopy(result)
    dearer["loss"][0, UNSTEERED + 1] = 2.1
    assert not Steering().known(dearer, work).holds
    result["gap"][0, 1, 0] = 9.0
    assert not Steering().known(result, work).holds


def test_table_and_headline(work: Work, reference: Result) -> None:
    table = Steering().table(reference, work)
    assert table["strength"].tolist() == list(STRENGTHS)
    assert table.columns.tolist() == ["opening", "strength", "gap_first", "gap_random", "gap", "loss", "text"]
    assert table["text"].str.len().min() > 0
    assert table["gap_first"].tolist() == reference["gap"][0, :, 0].tolist()
    headline = Steering().headline(reference, work)
    assert headline.startswith("at blocks.1.resid_post, strengths -4, -2, +0, +2, +4 put positive words ")
    assert f"{reference['loss'][0, 0]:.2f}" in headline


class OneToken:
    """A tokenizer that knows one word."""

    pad_token_id, eos_token_id = 0, None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [4] * len(text.split())}


def test_word_sets_share_no_token(llama: tuple[nn.Module, Any], work: Work) -> None:
    one, two = (set(words.tolist()) for words in work.words)
    assert one
    assert two
    assert not one & two
    model, _ = llama
    with pytest.raises(InputError, match="begins positive and negative words with the same tokens"):
        Steering().prepare(model, OneToken(), size="smoke")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        Steering().prepare(model, None, size="smoke")


def test_a_step_is_steered_and_the_bare_forward_is_not(llama: tuple[nn.Module, Any], work: Work) -> None:
    model, _ = llama
    with open_inspector("hooks", model) as lens:
        run: Any = Steering().step(lens, work)()
    bare = Steering().bare(model, work)().logits
    assert run.logits.shape == bare.shape
    moved = (run.logits - bare).abs().amax(-1)
    assert moved[:, :-1].max() < 1e-4  # only the last position is steered
    assert moved[UNSTEERED].max() < 1e-4
    assert moved[[0, -1], -1].min() > 0.1
