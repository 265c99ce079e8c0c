"""Attribution patching against the exact effects, where they agree by law and where they should nearly agree."""

from __future__ import annotations

import pytest
import torch

from crosslens.adapters import InputError, SiteError, add, open_inspector, replace, scale, zero
from crosslens.adapters.conformance.models import tiny_model
from crosslens.tasks import sweep
from crosslens.tasks.attribution_patching import estimate

from .test_sweep import IDS, OTHER, metric


@pytest.mark.parametrize("backend", ["hooks", "nnsight", "pyvene", "transformer_lens"])
def test_it_is_exact_where_the_metric_is_linear(backend: str) -> None:
    """The logits are a linear map of what enters the unembedding."""
    with open_inspector(backend, *tiny_model("llama", dtype=torch.float64)) as lens:
        clean = lens.run(IDS, capture="final_norm")["final_norm"]
        edits = [[replace("final_norm", clean[:, p : p + 1], positions=[p])] for p in range(7)]
        edits += [[scale("final_norm", 0.3, rows=[1]), zero("logits", positions=[0])], [zero("final_norm", units=[2])]]
        want = sweep(lens, OTHER, edits, metric)
        assert (want[6] - want[0]).abs().min() > 0.1, "vacuous"
        assert torch.allclose(estimate(lens, OTHER, edits, metric), want, rtol=0, atol=1e-10)


def test_small_edits_agree_to_second_order() -> None:
    with open_inspector("hooks", *tiny_model("gpt2", dtype=torch.float64)) as lens:
        direction = torch.randn(2, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        errors = []
        for size in (1e-2, 1e-3):
            edits = [[add(f"blocks.{b}.resid_post", size * direction, positions=[p])] for b in range(3) for p in (1, 5)]
            errors.append(float((estimate(lens, OTHER, edits, metric) - sweep(lens, OTHER, edits, metric)).abs().max()))
        assert errors[0] > 1e-9, "vacuous: not even the second order shows"
        assert errors[1] < errors[0] / 50, "a tenth of the edit must leave about a hundredth of the error"


def test_several_sites_add_up_and_nothing_changes_nothing() -> None:
    with open_inspector("hooks", *tiny_model("llama", dtype=torch.float64)) as lens:
        a, b = scale("blocks.0.attn.z", 0.5, heads=[1]), zero("blocks.2.mlp.post", units=[4])
        plain = metric(lens.run(OTHER).logits)
        both, one, other, none = estimate(lens, OTHER, [[a, b], [a], [b], []], metric)
        assert torch.allclose(both - plain, (one - plain) + (other - plain), rtol=0, atol=1e-12)
        assert torch.equal(none, plain)


def test_mistakes_are_refused() -> None:
    with open_inspector("hooks", *tiny_model("llama")) as lens:
        with pytest.raises(InputError, match=r"module:lm_head:input.*canonical"):
            estimate(lens, OTHER, [[zero("module:lm_head:input")]], metric)
        with pytest.raises(SiteError, match="resid_post"):
            estimate(lens, OTHER, [[zero("blocks.0.resid_pots")]], metric)
        with pytest.raises(InputError, match="one number a row"):
            estimate(lens, OTHER, [[zero("embed")]], lambda logits: logits.sum())
