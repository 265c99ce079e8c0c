"""The linear probe on tiny models: against other computations, backends against the reference, and that errors show."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import nn

from crosslens.adapters import InputError, open_inspector
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks.base import Result
from crosslens.tasks.probe import Probe, Work, _auroc, _decisions, _dual_decisions

from .broken import NoMask

Array = NDArray[np.float64]
FAMILIES = ["llama", "gpt2", "gpt_neox"]


def outcome(model: nn.Module, work: Work, backend: str = "hooks") -> Result:
    with open_inspector(backend, model) as lens:
        return Probe().run(lens, work)


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, Any]:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def work(llama: tuple[nn.Module, Any]) -> Work:
    return Probe().prepare(*llama, size="smoke")


@pytest.fixture(scope="module")
def reference(llama: tuple[nn.Module, Any], work: Work) -> Result:
    return Probe().reference(llama[0], work)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_agree_with_the_reference(family: str, dtype: torch.dtype) -> None:
    model, tokenizer = tiny_model(family, dtype=dtype)
    work = Probe().prepare(model, tokenizer, size="smoke")
    reference = Probe().reference(model, work)
    score = Probe().score(outcome(model, work), reference, work, str(dtype).removeprefix("torch."))
    assert score.right
    assert score.rank_agreement > 0.99
    assert score.effect > Probe.least_effect


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "pyvene"])
def test_other_backends_agree(llama: tuple[nn.Module, Any], work: Work, reference: Result, backend: str) -> None:
    assert Probe().score(outcome(llama[0], work, backend), reference, work, "float32").right


def test_another_layer_is_not_right(work: Work, reference: Result) -> None:
    shifted = {"decision": np.roll(reference["decision"], 1, axis=0)}
    assert not Probe().score(shifted, reference, work, "float32").right
    exchanged = {"decision": reference["decision"].reshape(3, 6, -1, 2)[..., ::-1].reshape(3, 6, -1)}
    assert not Probe().score(exchanged, reference, work, "float32").right
    for wrong in (1e-2, np.nan, np.inf):
        broken = copy.deepcopy(dict(reference))
        broken["decision"][0, -1, -1] += wrong
        assert not Probe().score(broken, reference, work, "float32").right


def test_right_padding_lies_behind_what_is_read(llama: tuple[nn.Module, Any], work: Work) -> None:
    """So a causal model gives the same without a mask, as long as the last real position is the one that is read."""
    assert {len(set(batch.inputs["attention_mask"].sum(1).tolist())) > 1 for batch in work.batches} == {True}
    right = outcome(llama[0], work)["decision"]
    with NoMask(llama[0]) as lens:
        np.testing.assert_allclose(Probe().run(lens, work)["decision"], right, atol=1e-4)


def test_the_decision_by_ordinary_least_squares(work: Work) -> None:
    """Ridge regression is least squares with the penalty as further examples; here without a centre to find."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(len(work.examples), 7)) * rng.uniform(0.1, 10, size=7) + 3.0
    for decisions in (_decisions(x, work), _dual_decisions(x, work)):
        for fold in (0, 3):
            held = work.fold == fold
            seen, y = x[~held], work.labels[0, ~held]
            z = (x - seen.mean(0)) / seen.std(0)
            further = np.concatenate([z[~held], np.sqrt(7) * np.eye(7)])
            beta = np.linalg.lstsq(further, np.concatenate([y - y.mean(), np.zeros(7)]), rcond=None)[0]
            np.testing.assert_allclose(decisions[0, held], z[held] @ beta + y.mean(), rtol=1e-9)


def test_a_coordinate_that_never_varies_says_nothing(work: Work) -> None:
    x = np.random.default_rng(2).normal(size=(len(work.examples), 5))
    x[:, 2] = 4.0
    for decisions in (_decisions, _dual_decisions):
        found = decisions(x, work)
        assert np.isfinite(found).all()
        moved = x.copy()
        moved[:, 2] = -1.0
        np.testing.assert_allclose(decisions(moved, work), found, rtol=1e-12)


def test_no_pair_is_split_and_controls_only_exchange(work: Work) -> None:
    full = Probe().prepare(*tiny_model("llama"), size="full")
    for each, pairs, controls in ((work, 6, 5), (full, 24, 500)):
        assert each.examples["pair"].nunique() == pairs
        assert pd.Series(each.fold).groupby(each.examples["pair"]).nunique().eq(1).all()
        assert each.labels.shape == (1 + controls, 2 * pairs)
        assert np.array_equal(each.labels[0], np.where(each.examples["category"] == "positive", 1.0, -1.0))
        assert np.array_equal(each.labels[:, 0::2], -each.labels[:, 1::2])
    exchanged = (full.labels[1:, 0::2] < 0).mean()
    assert 0.45 < exchanged < 0.55


def planted(work: Work, strength: float) -> Array:
    """(layer, example, d_model): noise, and in the middle layer the category along one direction."""
    rng = np.random.default_rng(3)
    streams = rng.normal(size=(3, len(work.examples), 20))
    streams[1] += strength * work.labels[0][:, None] * rng.normal(size=20)
    return streams


def test_a_planted_direction_is_found_where_it_is() -> None:
    work = Probe().prepare(*tiny_model("llama"), size="default")
    result = {"decision": np.stack([_decisions(x, work) for x in planted(work, 1.0)])}
    table = Probe().table(result, work)
    assert table["auroc"].idxmax() == 1
    assert table["auroc"][1] > 0.95
    assert table["paired"][1] > 0.95
    assert table["p"][1] == pytest.approx(1 / 51)
    assert table["control"].between(0.4, 0.6).all()
    assert table["auroc"].drop(1).between(0.25, 0.75).all()
    assert (table["selectivity"] == table["auroc"] - table["control"]).all()
    assert Probe().headline(result, work).startswith("the category is read best after block 1 of 3: AUROC ")
    assert Probe().known(result, work).holds
    nothing = {"decision": np.stack([_decisions(x, work) for x in planted(work, 0.0)])}
    assert not Probe().known(nothing, work).holds


def test_the_area_is_scikit_learns() -> None:
    rng = np.random.default_rng(4)
    labels = rng.choice([1.0, -1.0], size=40)
    decision = rng.integers(0, 6, size=40).astype(float)  # with ties
    assert _auroc(decision, labels) == pytest.approx(roc_auc_score(labels > 0, decision))


def test_one_layer_by_hand(llama: tuple[nn.Module, Any], work: Work, reference: Result) -> None:
    """A plain hook on single sentences, and one call of Ridge."""
    model, tokenizer = llama
    seen: list[Array] = []
    handle = model.get_submodule("model.layers.1").register_forward_hook(
        lambda module, args, output: seen.append(output[0, -1].double().numpy())
    )
    with torch.no_grad():
        for text in work.examples["text"]:
            model(torch.tensor([tokenizer(text)["input_ids"]]))
    handle.remove()
    x, held = np.stack(seen), work.fold == 2
    z = (x - x[~held].mean(0)) / x[~held].std(0)
    ridge = Ridge(alpha=32.0).fit(z[~held], work.labels[0, ~held])
    np.testing.assert_allclose(reference["decision"][1, 0, held], ridge.predict(z[held]), atol=1e-4)


def test_what_cannot_be_prepared_is_refused(llama: tuple[nn.Module, Any]) -> None:
    with pytest.raises(InputError, match="needs the model's tokenizer"):
        Probe().prepare(llama[0], None, size="smoke")
    with pytest.raises(InputError, match="known family, not Linear"):
        Probe().prepare(nn.Linear(2, 2), llama[1], size="smoke")


def test_a_step_is_the_bare_forward_and_its_captures(llama: tuple[nn.Module, Any], work: Work) -> None:
    with open_inspector("hooks", llama[0]) as lens:
        run: Any = Probe().step(lens, work)()
    assert list(run) == work.sites
    torch.testing.assert_close(run.logits, Probe().bare(llama[0], work)().logits, rtol=0, atol=0)
