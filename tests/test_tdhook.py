"""What is special to the tdhook backend; the conformance kit checks what it promises like every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tdhook.attribution.gradient_helpers import GradientAttribution
from tdhook.session import HookSession
from tdhook.targets import Target
from torch import Tensor, nn

from crosslens.adapters import SiteError, UnsupportedError, open_inspector, replace, zero
from crosslens.adapters.attribution import Target as AttributionTarget
from crosslens.adapters.conformance.models import tiny_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_tdhook_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hook of a run is one that a session of tdhook's registered, and without it nothing is seen."""
    programs = []
    leave = HookSession.__exit__
    monkeypatch.setattr(
        HookSession, "__exit__", lambda self, *how: (leave(self, *how), programs.append(self.program))[0]
    )
    model, tokenizer = tiny_model("llama")
    with open_inspector("tdhook", model, tokenizer) as lens:
        lens.run(IDS, capture=["blocks.*.resid_post", "blocks.0.attn.z"], edits=[zero("blocks.1.mlp.out")])
        (program,) = programs
        assert {(spec.module_path, spec.direction) for spec in program.hooks} == {
            *((f"model.layers.{layer}", "fwd") for layer in range(3)),
            ("model.layers.0.self_attn.o_proj", "fwd_pre_kwargs"),
            ("model.layers.1.mlp", "fwd"),
        }
        monkeypatch.setattr(HookSession, "replace", lambda *_, **__: None)
        with pytest.raises(SiteError, match="did not run"):
            lens.run(IDS, capture="blocks.0.resid_post")


def test_it_is_what_tdhook_gives_by_itself() -> None:
    model, _ = tiny_model("llama", dtype=torch.float64)
    value = torch.randn(2, 1, 32, dtype=torch.float64)
    with HookSession(model) as session:
        captured = session.capture(Target("model.layers.2", "activation", -1, tuple(range(32))))
        session.replace(Target("model.layers.1", "activation", 1, (3,)), value)
        with torch.no_grad():
            want = model(IDS).logits
    with open_inspector("tdhook", model) as lens:
        edit = replace("blocks.1.resid_post", value, positions=[3])
        run = lens.run(IDS, capture="blocks.2.resid_post", edits=[edit])
        assert torch.equal(run.logits, want)
        assert torch.equal(run["blocks.2.resid_post"], captured.values[0])


def test_native_addresses_are_tdhooks_own_paths() -> None:
    model, _ = tiny_model("gpt2")
    with open_inspector("tdhook", model) as lens:
        run = lens.run(IDS, capture=["native:transformer.h[1].mlp.output", "blocks.1.mlp.out"])
        assert torch.equal(run["native:transformer.h[1].mlp.output"], run["blocks.1.mlp.out"])
        for wrong in ("transformer.h[9].output", "transformer.h.output", "transformer.h[1].mlp", "(1).output"):
            with pytest.raises(SiteError, match="tdhook finds no module that runs"):
                lens.run(IDS, capture=f"native:{wrong}")


class _Odd(nn.Module):
    """Submodules with names that tdhook's grammar must be told are names, and a module called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": nn.Linear(3, 3), "1": nn.Identity()})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts["1"](input=self.parts["a-b"](x))
        return out


def test_unusual_names_and_keywords() -> None:
    model, x = _Odd(), torch.randn(2, 3)
    with open_inspector("tdhook", model) as lens:
        run = lens.run(x, capture=["module:parts.a-b:output", "module:parts.1:input"])
        assert torch.equal(run["module:parts.a-b:output"], run["module:parts.1:input"])
        edited = lens.run(x, edits=[zero("module:parts.1:input", units=[0])])
        assert not edited.output[:, 0].any()
        assert edited.output[:, 1].all()


def test_an_edit_never_writes_into_the_callers_tensors() -> None:
    model, x = nn.Sequential(nn.Identity(), nn.ReLU()), torch.ones(2, 3, requires_grad=True)
    with open_inspector("tdhook", model) as lens:
        assert not lens.run(x, edits=[zero("module:0:input")]).output.any()
        assert x.all()
        gradients: dict[str, Any] = lens.gradients(x, "module:0:output", lambda out: out.sum())
        assert gradients["module:0:output"].all(), "through a ReLU, which pyvene's in-place edits break"


# ---- attribution


def test_attribution_is_tdhooks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And integrated gradients run at most 32 rows in one forward, whatever the number of nodes."""
    forwards: list[int] = []
    original = GradientAttribution._attributor_fn

    def counted(self: Any, td: Any, cache: Any) -> Any:
        forwards.append(td["_mod_in"].numel())
        return original(self, td, cache)

    monkeypatch.setattr(GradientAttribution, "_attributor_fn", counted)
    model, _ = tiny_model("llama", dtype=torch.float64)
    with open_inspector("tdhook", model) as lens:
        lens.attribute(IDS, 5, method="saliency")
        assert forwards == [2]
        forwards.clear()
        lens.attribute(IDS, 5, method="integrated_gradients", steps=40)
        assert forwards == [32, 32, 16]


def test_attribution_agrees_with_captum() -> None:
    pytest.importorskip("captum")
    model, _ = tiny_model("gpt2", dtype=torch.float64)
    padded = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}
    target = AttributionTarget([5, 6], minus=9, of="probability", position=1)
    with open_inspector("tdhook", model) as one, open_inspector("captum", model) as two:
        for method in ("saliency", "input_x_gradient", "integrated_gradients"):
            a, b = (lens.attribute(padded, target, method=method) for lens in (one, two))
            assert b.scores.abs().max() > 0
            assert torch.allclose(a.scores, b.scores, rtol=1e-6, atol=1e-12), method
            if b.delta is not None:
                assert torch.allclose(a.delta, b.delta, atol=1e-9)


def test_attribution_with_position_ids_of_the_callers_own() -> None:
    model, _ = tiny_model("gpt2", dtype=torch.float64)
    positions = torch.tensor([[3, 4, 5, 6], [0, 1, 2, 3]])
    with open_inspector("tdhook", model) as lens:
        given = {"input_ids": IDS, "position_ids": positions}
        got = lens.attribute(given, 5, method="integrated_gradients", steps=20).units
    embeds = model.transformer.wte(IDS).detach()
    nodes, weights = np.polynomial.legendre.leggauss(20)
    want = torch.zeros_like(embeds)
    for node, weight in zip(nodes, weights, strict=True):
        at = (embeds * (1 + node) / 2).requires_grad_()
        logits = model(inputs_embeds=at, position_ids=positions, use_cache=False).logits[:, -1, 5]
        want += weight / 2 * torch.autograd.grad(logits.sum(), at)[0] * embeds
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", ["occlusion", "attention", "value_zeroing", "layer_gradient_x_activation"])
def test_methods_that_tdhook_does_not_have_are_refused_with_the_reason(method: str) -> None:
    model, _ = tiny_model("gpt2")
    site = "blocks.1.mlp.post" if method.startswith("layer") else None
    with open_inspector("tdhook", model) as lens, pytest.raises(UnsupportedError, match="tdhook"):
        lens.attribute(IDS, 5, method=method, site=site)
