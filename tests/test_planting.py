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
from crosslens.benchmarks.known_truth import PLACES, SITES, WAYS, Cell, judged, random_texts, truth_of
from crosslens.tasks import compare
from crosslens.tasks.planting import KINDS, affected, compare_planted, plant

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
        (("turn", SITE, 0.5), "no kind 'turn' of planted difference; there are mean"),
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


# ---- the benchmark


def test_the_benchmark_plants_every_kind() -> None:
    assert set(PLACES) == set(KINDS)


def test_a_strong_difference_is_found_and_its_truth_is_of_the_ranked_sites(lens: Inspector) -> None:
    site, sizes = PLACES["variance"]
    found = Cell("variance", sizes[-1], 12, 0).run(lens, permutations=100)
    truth = truth_of(lens, site)
    assert truth.sum() == 7
    assert len(truth) == len(lens.architecture.sites.resolve(SITES))
    assert set(found) == set(WAYS)
    for way, (scores, declared) in found.items():
        assert scores.shape == declared.shape == truth.shape, way
        row = judged(scores, declared, truth)
        assert 0 <= row["ap"] <= 1
    assert judged(*found["crosslens: figures"], truth)["auroc"] == 1
    assert judged(*found["crosslens: figures"], truth)["first"] == 1


def test_judging_is_right_by_hand() -> None:
    truth = np.array([False, False, True, True])
    found = judged(np.array([0.1, np.inf, 5.0, np.inf]), np.array([False, False, True, True]), truth)
    assert found == {
        "auroc": 0.625,
        "ap": pytest.approx((1 / 2 * 0.5) + (2 / 3 * 0.5)),
        "first": 1,
        "power": 1,
        "false": 0,
    }
    found = judged(np.zeros(4), np.array([True, False, False, True]), truth)
    assert found == {"auroc": 0.5, "ap": 0.5, "first": 0, "power": 0.5, "false": 1}
