"""The planted task: backends and reference agree, the truth is named, and what is planted wrongly is caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from crosslens.adapters import InputError, Inspector, Run, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.planted import FIGURES, SIZE, Planted, Work
from crosslens.tasks.planting import plant

TASK = Planted()


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def setting(request: pytest.FixtureRequest) -> Iterator[tuple[Inspector, Work, Any]]:
    model, tokenizer = tiny_model(request.param)
    work = TASK.prepare(model, tokenizer, size="smoke")
    with open_inspector("hooks", model, tokenizer) as lens:
        yield lens, work, TASK.reference(model, work)


def test_the_result_is_the_references_and_the_truth_is_named(setting: tuple[Inspector, Work, Any]) -> None:
    lens, work, reference = setting
    told: list[tuple[int, int]] = []
    result = TASK.run(lens, work, lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1]
    score = TASK.score(result, reference, work, "float32")
    assert score.right, score
    assert score.effect > 100 * TASK.least_effect
    assert score.rank_agreement > 0.99
    known = TASK.known(reference, work)
    assert known.holds, known
    assert work.planted == "blocks.1.resid_post"
    assert work.planted in known.found
    assert work.affected.tolist() == [site >= "blocks.1.resid_post" for site in work.sites]
    assert "first found at blocks.1.resid_post" in TASK.headline(result, work)
    table = TASK.table(result, work)
    assert table["site"][0] == work.planted
    assert (table.loc[~table["affected"], "moved"] == 0).all()


def test_the_planted_spread_is_what_was_asked_for(setting: tuple[Inspector, Work, Any]) -> None:
    _, work, reference = setting
    at = work.sites.index(work.planted)
    well, sick = (dict(zip(FIGURES, reference[name][:, at].T, strict=True)) for name in ("well", "sick"))
    np.testing.assert_allclose(sick["mean"], well["mean"], rtol=1e-9)
    # each vector's own spread grows; that of its means over tokens, the rest of the pooled variance, does not
    grown = (sick["sd"] / well["sd"] - 1) / SIZE
    assert ((grown > 0.9) & (grown <= 1 + 1e-9)).all()


class Changed:
    """An inspector of which every edited forward is another one."""

    def __init__(self, lens: Inspector, edits: Any) -> None:
        self._lens, self._edits = lens, edits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lens, name)

    def run(self, inputs: Any, capture: Any = (), edits: Any = ()) -> Run:
        return self._lens.run(inputs, capture=capture, edits=self._edits if edits else [])


@pytest.mark.parametrize(
    "edits",
    [
        [],
        plant("variance", "blocks.0.resid_post", SIZE),
        plant("variance", "blocks.2.resid_post", SIZE),
        plant("variance", "blocks.1.resid_post", 1.001 * SIZE),
        plant("mean", "blocks.1.resid_post", SIZE),
    ],
    ids=["none", "a layer before", "a layer behind", "a little more", "another kind"],
)
def test_what_is_planted_wrongly_is_caught(setting: tuple[Inspector, Work, Any], edits: Any) -> None:
    lens, work, reference = setting
    result = TASK.run(Changed(lens, edits), work)  # type: ignore[arg-type]
    assert not TASK.score(result, reference, work, "float32").right


def test_the_known_fact_fails_where_it_does_not_hold(setting: tuple[Inspector, Work, Any]) -> None:
    _, work, reference = setting
    elsewhere = dataclasses.replace(work, planted="blocks.0.resid_post")
    assert not TASK.known(reference, elsewhere).holds
    still = {**reference, "moved": np.zeros(len(work.sites))}
    assert not TASK.known(still, work).holds
    leaking = {**reference, "moved": np.where(work.affected, reference["moved"], 1e-3)}
    assert not TASK.known(leaking, work).holds
    assert TASK.headline(still, work) == "nothing moved, though a difference was planted at blocks.1.resid_post"
    assert TASK.score(still, still, work, "float32").effect < TASK.least_effect, "vacuous"


def test_the_timed_step_and_the_bare_forward_read_the_same(setting: tuple[Inspector, Work, Any]) -> None:
    lens, work, _ = setting
    run, bare = TASK.step(lens, work)(), TASK.bare(lens.model, work)()
    assert run.logits.shape == bare.logits.shape
    assert not torch.equal(run.logits, bare.logits)


def test_models_without_a_next_token_are_refused() -> None:
    model, tokenizer = tiny_model("bert")
    with pytest.raises(InputError, match="predicts the next token"):
        TASK.prepare(model, tokenizer, size="smoke")
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        TASK.prepare(tiny_model("llama")[0], None, size="smoke")
