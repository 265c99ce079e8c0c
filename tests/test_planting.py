"""Planted differences: each does what it says, reaches what it is said to reach, and is found there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from crosslens.adapters import InputError, Inspector, SiteError, apply, open_inspector
from crosslens.adapters.conformance.models import TINY_FAMILIES, tiny_model
from crosslens.benchmarks.known_truth_runs import next_token_loss, random_texts
from crosslens.tasks import compare
from crosslens.tasks.planting import GRADIENT_KINDS, affected, affected_gradients, compare_planted, fault, plant

SITE = "blocks.1.resid_post"
TEXT = "the cat sat on a mat"


@pytest.fixture(scope="module")
def lens() -> Iterator[Inspector]:
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as opened:
        yield opened


def both(lens: Inspector, kind: str, site: str, size: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The tensor at the site, as it is and planted."""
    plain = lens.run(TEXT, capture=[site])[site]
    return plain, lens.run(TEXT, capture=[site], edits=plant(kind, site, size, seed=seed))[site]


def test_mean_and_variance_are_in_units_of_each_vector(lens: Inspector) -> None:
    plain, moved = both(lens, "mean", SITE, 0.5)
    torch.testing.assert_close(moved.mean(-1), plain.mean(-1) + 0.5 * plain.std(-1, correction=0))
    torch.testing.assert_close(moved.std(-1), plain.std(-1))
    plain, wider = both(lens, "variance", SITE, 0.25)
    torch.testing.assert_close(wider.mean(-1), plain.mean(-1))
    torch.testing.assert_close(wider.std(-1), 1.25 * plain.std(-1))


def test_tail_dead_and_nan_choose_units_by_the_seed(lens: Inspector) -> None:
    plain, out = both(lens, "tail", SITE, 8.0)
    changed = (plain != out).all(dim=(0, 1))
    assert changed.sum() == 2
    assert torch.equal(plain[..., ~changed], out[..., ~changed])
    other = both(lens, "tail", SITE, 8.0, seed=1)[1]
    assert not torch.equal((plain != other).all(dim=(0, 1)), changed)
    for kind, wrong in (("dead", torch.eq), ("nan", lambda x, _: x.isnan())):
        plain, out = both(lens, kind, "blocks.1.mlp.post", 0.1)
        units = wrong(out, 0).all(dim=(0, 1))
        assert units.sum() == 8
        assert torch.equal(plain[..., ~units], out[..., ~units])
    plain, out = both(lens, "dead", "blocks.1.attn.z", 1e-9)  # at least one unit, over all heads
    assert (out.flatten(2) == 0).all(dim=(0, 1)).sum() == 1


def test_the_rotation_keeps_norm_and_mean_and_turns(lens: Inspector) -> None:
    plain, turned = both(lens, "direction", SITE, 0.7)
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1))
    torch.testing.assert_close(turned.mean(-1), plain.mean(-1))
    centred, after = (each - each.mean(-1, keepdim=True) for each in (plain, turned))
    cosine = torch.nn.functional.cosine_similarity(centred, after, dim=-1)
    # 30 of the 31 dimensions turn by 0.7, one stays
    assert ((cosine > math.cos(0.7) - 1e-9) & (cosine < 0.95)).all()


@pytest.mark.parametrize("left", [False, True])
def test_attention_goes_to_the_first_real_token(lens: Inspector, left: bool) -> None:
    site = "blocks.1.attn.pattern"
    ids = torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]] if left else [[7, 8, 9, 0, 0], [3, 4, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5] if left else [[1, 1, 1, 0, 0], [1] * 5])
    inputs = {"input_ids": ids, "attention_mask": mask}
    plain = lens.run(inputs, capture=[site])[site]
    moved = lens.run(inputs, capture=[site], edits=plant("attention", site, 0.25))[site]
    real, first = mask.bool(), mask.argmax(1)
    for row in range(2):
        a, b = plain[row][:, real[row]], moved[row][:, real[row]]
        torch.testing.assert_close(b.sum(-1), torch.ones_like(b.sum(-1)))
        want = 0.75 * a
        want[..., first[row]] += 0.25
        torch.testing.assert_close(b, want)


@pytest.mark.parametrize("family", [name for name in TINY_FAMILIES if name != "bert"])
def test_what_is_affected_is_what_changes(family: str) -> None:
    with open_inspector("hooks", *tiny_model(family, dtype=torch.float64, attn_implementation="eager")) as opened:
        names = list(opened.architecture.sites.canonical)
        inputs = torch.tensor([[5, 80, 17, 33, 60]])
        plain = opened.run(inputs, capture=names)
        here = [name for name in names if name.startswith("blocks.1.")] + ["embed", "final_norm"]
        for site in here:
            noise = torch.rand(plain[site].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            edit = apply(site, lambda x, noise=noise: x * (0.5 + noise))
            after = opened.run(inputs, capture=names, edits=[edit])
            changed = [name for name in names if not torch.allclose(after[name], plain[name], rtol=1e-9, atol=1e-12)]
            assert changed == affected(opened, site), site


@pytest.mark.parametrize("family", [name for name in TINY_FAMILIES if name != "bert"])
def test_the_gradients_that_are_affected_are_those_that_change(family: str) -> None:
    with open_inspector("hooks", *tiny_model(family, dtype=torch.float64, attn_implementation="eager")) as opened:
        names = list(opened.architecture.sites.canonical)
        inputs = torch.tensor([[5, 80, 17, 33, 60]])

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return next_token_loss(logits, inputs)

        plain = opened.gradients(inputs, names, loss)
        output = opened.run(inputs).logits
        for site in ("embed", "blocks.1.attn.v", "blocks.1.attn.pattern", "blocks.1.mlp.out", SITE, "final_norm"):
            if site not in names:
                continue
            edits = plant("exploding", site, 0.5)
            assert torch.equal(opened.run(inputs, edits=edits).logits, output), "the forward stays as it is"
            after = opened.gradients(inputs, names, loss, edits=edits)
            changed = [name for name in names if not torch.allclose(after[name], plain[name], rtol=1e-9, atol=1e-13)]
            assert changed == affected_gradients(opened, site), site


@pytest.mark.parametrize(("kind", "factor"), [("exploding", 1.5), ("vanishing", 1 / 1.5)])
def test_a_fault_in_training_is_what_the_edit_is_and_leaves_when_it_ends(kind: str, factor: float) -> None:
    model, tokenizer = tiny_model("llama", dtype=torch.float64)
    ids = torch.tensor([[5, 80, 17, 33, 60]])

    def backward() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(ids).logits
        next_token_loss(logits, ids).backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    logits, plain = backward()
    with fault(model.model.layers[1], kind, 0.5):
        faulty_logits, faulty = backward()
    assert torch.equal(faulty_logits, logits)
    for name, gradient in plain.items():
        if "embed" in name:
            continue  # tied to the head: part of its gradient comes from behind the block
        behind = name.startswith(("model.layers.2.", "model.norm", "lm_head"))
        torch.testing.assert_close(
            faulty[name], gradient * (1.0 if behind else factor), rtol=1e-3, atol=1e-6
        )  # float32 norms
    with open_inspector("hooks", model, tokenizer) as opened:
        before = opened.gradients(ids, ["*resid_post"], lambda out: next_token_loss(out, ids))
        edited = opened.gradients(
            ids, ["*resid_post"], lambda out: next_token_loss(out, ids), edits=plant(kind, SITE, 0.5)
        )
    torch.testing.assert_close(edited["blocks.0.resid_post"], factor * before["blocks.0.resid_post"])
    torch.testing.assert_close(edited[SITE], before[SITE])
    with pytest.raises(ZeroDivisionError), fault(model.model.layers[1], kind, 0.5):
        raise ZeroDivisionError
    again = backward()[1]
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


def test_a_fault_lets_what_follows_work_in_place_and_passes_by_whole_numbers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 1))
    x = torch.ones(2, 3, requires_grad=True)
    want = torch.autograd.grad(model(x).sum(), x)[0]
    with fault(model[0], "exploding", 1.0):
        torch.testing.assert_close(torch.autograd.grad(model(x).sum(), x)[0], 2 * want)

    class Pair(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"value": x * 3, "index": torch.arange(2)}

    pair = Pair()
    with fault(pair, "vanishing", 1.0):
        out = pair(x)
    assert out["index"].dtype == torch.int64
    torch.testing.assert_close(torch.autograd.grad(out["value"].sum(), x)[0], torch.full((2, 3), 1.5))


def test_a_fault_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no kind 'mean' of planted difference here; there are exploding, vanishing"):
        fault(torch.nn.Linear(1, 1), "mean", 1.0).__enter__()
    with pytest.raises(InputError, match="size is inf"):
        fault(torch.nn.Linear(1, 1), GRADIENT_KINDS[0], math.inf).__enter__()


def test_only_the_planted_category_is_edited_and_pairs_stay_pairs(lens: Inspector) -> None:
    texts = random_texts(8, seed=0)
    examples = [{"text": text, "category": c, "pair": str(i)} for i, text in enumerate(texts) for c in ("well", "sick")]
    found = compare_planted(lens, examples, {"sick": plant("variance", SITE, 0.2)}, sites="blocks.*.resid_post")
    contrasts = found.contrasts(permutations=0).set_index(["site", "kpi"])
    assert set(contrasts["tested"]) == {"paired"}
    assert contrasts.loc[("blocks.0.resid_post", "sd"), "difference"] == 0
    assert contrasts.loc[(SITE, "sd"), "mean_b"] > 1.15 * contrasts.loc[(SITE, "sd"), "mean_a"]
    whole = compare(lens, examples, sites="blocks.*.resid_post").contrasts(permutations=0).set_index(["site", "kpi"])
    np.testing.assert_allclose(contrasts.loc[(SITE, "sd"), "mean_a"], whole.loc[(SITE, "sd"), "mean_a"], rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("turn", SITE, 0.5), "no kind 'turn' of planted difference here; there are mean"),
        (("mean", SITE, 0.0), "size is 0.0; it must be a finite number above 0"),
        (("mean", SITE, math.nan), "size is nan"),
        (("mean", SITE, True), "size is True"),
        (("dead", SITE, 1.5), "a share, at most 1"),
        (("attention", SITE, 0.5), "cannot be planted at 'blocks.1.resid_post'"),
        (("mean", "blocks.1.attn.pattern", 0.5), "and no other, acts at attn.pattern"),
    ],
)
def test_what_cannot_be_planted_is_refused(arguments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plant(*arguments)


def test_bad_uses_are_refused(lens: Inspector) -> None:
    with pytest.raises(SiteError, match=r"'blocks\.9\.mlp\.out' is no canonical site"):
        affected(lens, "blocks.9.mlp.out")
    examples = [{"text": "a b", "category": "well"}]
    with pytest.raises(InputError, match="no example has the category 'sick'; there are well"):
        compare_planted(lens, examples, {"sick": plant("mean", SITE, 1)}, sites="embed")
    with pytest.raises(InputError, match="has no option 'out'"):
        compare_planted(lens, examples, {}, sites="embed", out="x")
    with pytest.raises(InputError, match="no examples"):
        compare_planted(lens, [], {}, sites="embed")
