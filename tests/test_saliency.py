"""Saliency: what is attributed, that it adds up, and that libraries and gradients agree on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from crosslens.adapters import InputError, load_backend, open_inspector
from crosslens.adapters.capabilities import CAPABILITIES, Support
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.saliency import ROLES, Saliency, Work, by_role, missing


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_agree_with_the_reference(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    task = Saliency()
    work = task.prepare(model, tokenizer, size="smoke")
    reference = task.reference(model, work)
    for backend in ("hooks", "nnsight") if dtype is torch.float64 else ("hooks", "transformer_lens"):
        with open_inspector(backend, model) as lens:
            result = task.run(lens, work)
        score = task.score(result, reference, work, str(dtype).removeprefix("torch."))
        assert score.right, backend
        assert score.rank_agreement > 0.99
        assert score.effect > task.least_effect
    assert missing(reference).max() < 1e-3  # tiny models bend little on the way: 16 nodes are plenty


@pytest.mark.parametrize("backend", ["captum", "tdhook", "inseq"])
def test_the_libraries_own_attribution_agrees(llama: tuple[nn.Module, Any], backend: str) -> None:
    model, tokenizer = llama
    task = Saliency()
    work = task.prepare(model, tokenizer, size="smoke")
    with open_inspector(backend, model) as lens:
        score = task.score(task.run(lens, work), task.reference(model, work), work, "float32")
    assert score.right
    assert score.rank_agreement > 0.99


def test_scores_are_what_finite_differences_say() -> None:
    """Input x gradient is the slope of the margin along the token's own embedding."""
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)  # llama has parts in float32, whatever the model
    task = Saliency()
    work = task.prepare(model, tokenizer, size="smoke")
    prompt, eps = work.prompts[1], 1e-5
    scores = task.reference(model, work)["input_x_gradient"][1]
    for position in (prompt.roles["subject again"][0], 1):
        ends = []
        for sign in (1, -1):
            moved = prompt.embeds.clone()
            moved[0, position] *= 1 + sign * eps
            with torch.no_grad():
                ends.append(float(prompt.margin(model(inputs_embeds=moved).logits)))
        assert scores[position] == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=1e-4)


def test_nothing_is_attributed_where_no_name_stands(llama: tuple[nn.Module, Any]) -> None:
    model, tokenizer = llama
    task = Saliency()
    work = task.prepare(model, tokenizer, size="default")
    assert len(work.prompts) == len({prompt.id for prompt in work.prompts}) == 4
    with open_inspector("hooks", model) as lens:
        result = task.run(lens, work)
    for i, prompt in enumerate(work.prompts):
        named = sorted(place for role in ROLES for place in prompt.roles[role])
        elsewhere = [p for p in range(len(prompt.tokens)) if p not in named]
        assert not result["integrated"][i, elsewhere].any()
        assert (result["integrated"][i, named] != 0).all()
        assert np.isnan(result["integrated"][i, len(prompt.tokens) :]).all()
        text = "".join(prompt.tokens[p] for p in prompt.roles["subject"])
        assert text == "".join(prompt.tokens[p] for p in prompt.roles["subject again"])
        assert text != "".join(prompt.tokens[p] for p in prompt.roles["answer"])
    table = task.table(result, work)
    assert len(table) == sum(len(prompt.tokens) for prompt in work.prompts)
    assert table.groupby(["prompt", "role"])["integrated"].sum().unstack()[list(ROLES)].to_numpy() == pytest.approx(
        by_role(result["integrated"], work)[np.argsort([p.id for p in work.prompts])]
    )


def test_known_holds_for_what_is_known_alone(llama: tuple[nn.Module, Any]) -> None:
    task = Saliency()
    work = task.prepare(*llama, size="smoke")
    assert task.known(_planted(work, 3.0, -2.0, 1.0, change=2.0), work).holds
    assert not task.known(_planted(work, 3.0, 2.0, 1.0, change=6.0), work).holds
    incomplete = task.known(_planted(work, 3.0, -2.0, 1.0, change=2.2), work)
    assert not incomplete.holds
    assert "9.1% is missing" in incomplete.found
    assert "answer +3.00, subject -2.00" in task.headline(_planted(work, 3.0, -2.0, 1.0, change=2.0), work)


def _planted(work: Work, *of_roles: float, change: float) -> Mapping[str, Any]:
    scores = np.zeros((len(work.prompts), max(len(prompt.tokens) for prompt in work.prompts)))
    for i, prompt in enumerate(work.prompts):
        for role, value in zip(ROLES, of_roles, strict=True):
            scores[i, prompt.roles[role][0]] = value
    return {"integrated": scores, "input_x_gradient": scores, "change": np.full(len(work.prompts), change)}


@pytest.mark.parametrize("name", ["input_x_gradient", "integrated", "change"])
@pytest.mark.parametrize("wrong", ["shifted", "missing", "off"])
def test_a_wrong_result_is_judged_wrong(llama: tuple[nn.Module, Any], name: str, wrong: str) -> None:
    model, tokenizer = llama
    task = Saliency()
    work = task.prepare(model, tokenizer, size="smoke")
    reference = task.reference(model, work)
    assert task.score(reference, reference, work, "float32").right
    broken = {key: value.copy() for key, value in reference.items()}
    if wrong == "shifted":
        broken[name] = np.roll(broken[name], 1, axis=-1)
    else:
        at = np.unravel_index(np.nanargmax(np.abs(broken[name])), broken[name].shape)
        broken[name][at] = np.nan if wrong == "missing" else broken[name][at] * 1.01
    assert not task.score(broken, reference, work, "float32").right


def test_either_way_is_enough() -> None:
    task = Saliency()
    states = {name: load_backend(name).supports() for name in ("hooks", "captum", "comgra")}
    assert task.lacks(states["hooks"]) == task.lacks(states["captum"]) == []
    assert task.lacks(states["comgra"]) == ["attribute"]
    but_one = {name: Support() for name in CAPABILITIES} | {
        name: Support("never", "no") for name in ("attribute", "gradients")
    }
    assert task.lacks(but_one) == ["attribute"]
    assert task.lacks(but_one | {"attribute": Support()}) == []


def test_what_cannot_be_prepared_is_refused(llama: tuple[nn.Module, Any]) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        Saliency().prepare(llama[0], None, size="smoke")
    with pytest.raises(InputError, match="predicts the next token"):
        Saliency().prepare(*tiny_model("bert"), size="smoke")
