"""The pyvene backend: that it is pyvene that runs, and that nothing of what pyvene does to a model is left."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crosslens.adapters import SiteError, UnsupportedError, add, apply, replace, scale, zero
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.hooks import HooksInspector

pytest.importorskip("pyvene")

import pyvene
from pyvene.models.modeling_utils import LambdaIntervention

from crosslens.adapters.pyvene import PyveneInspector

FAMILIES = ("llama", "gpt2", "gpt_neox")
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
X = torch.linspace(-2, 2, 20).reshape(4, 5)


def model_of(family: str, attention: str = "eager") -> Any:
    return tiny_model(family, dtype=torch.float64, attn_implementation=attention)[0]


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3)).eval()


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_is_an_intervention_of_pyvene(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up: list[str] = []
    called: list[Any] = []
    setter, forward = pyvene.IntervenableModel._intervention_setter, LambdaIntervention.forward

    def counted_setter(self: Any, keys: list[str], *args: Any, **kwargs: Any) -> Any:
        set_up.extend(keys)
        return setter(self, keys, *args, **kwargs)

    def counted_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(pyvene.IntervenableModel, "_intervention_setter", counted_setter)
    monkeypatch.setattr(LambdaIntervention, "forward", counted_forward)
    model = model_of(family)
    with PyveneInspector(model) as lens:
        sites = [site.name for site in lens.sites() if site.kind == "canonical"]
        fused = 0 if family == "llama" else 2 * lens.architecture.sizes["n_layers"]  # q, k and v pass one place
        run = lens.run(IDS, capture=sites, edits=[scale("blocks.1.attn.z", 0.5, heads=[1])])
        assert len(run) == len(sites)
        assert len(set_up) == len(set(set_up)) == len(sites) - fused
        assert len(called) == len(set(called)) == len(set_up)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_modes_and_foreign_hooks_stay(family: str) -> None:
    model = model_of(family).train()
    model.lm_head.weight.requires_grad_(False)
    model.get_submodule("lm_head").eval()
    fired: list[str] = []
    model.lm_head.register_forward_hook(lambda *_: fired.append("output"))
    lens = PyveneInspector(model)
    model.lm_head.register_forward_pre_hook(lambda *_: fired.append("input"))  # after the opening
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    lens.run(IDS, capture="blocks.*.resid_post", edits=[zero("blocks.0.mlp.out")])
    lens.gradients(IDS, "blocks.0.resid_post", metric)
    assert fired == ["input", "output"] * 2
    assert {name: p.requires_grad for name, p in model.named_parameters()} == frozen
    assert {name: module.training for name, module in model.named_modules()} == modes
    lens.close()
    assert len(model.lm_head._forward_hooks) == len(model.lm_head._forward_pre_hooks) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_hugging_face_still_come(family: str) -> None:
    model = model_of(family)
    want = model(IDS, output_hidden_states=True, output_attentions=True)
    with PyveneInspector(model) as lens:
        run = lens.run(IDS, capture=["blocks.0.resid_post", "blocks.0.attn.pattern"])
        got = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(got.hidden_states) == len(want.hidden_states) > 0
    assert torch.equal(run["blocks.0.resid_post"], got.hidden_states[1])
    assert torch.equal(run["blocks.0.attn.pattern"], got.attentions[0])


def test_an_edit_reaches_what_follows_and_no_other_holder_of_the_tensor() -> None:
    model, x = small(), X.clone()
    with PyveneInspector(model) as lens:
        edited = lens.run(x, edits=[zero("module:0:input")])
        assert torch.equal(x, X), "the caller's own input"
        assert torch.allclose(edited.output, model(torch.zeros(4, 5)))
        # a dropout that drops nothing gives back the tensor that it got
        run = lens.run(x, capture=["module:2:output"], edits=[add("module:2:output", torch.ones(4, 7))])
        held: list[Tensor] = []
        handle = model[1].register_forward_hook(lambda module, args, output: held.append(output))
        lens.run(x, edits=[add("module:2:output", torch.ones(4, 7))])
        handle.remove()
        assert torch.equal(held[0] + 1, run["module:2:output"])


def test_gradients_pass_operations_that_keep_their_output() -> None:
    relu, sites = small(), ["module:0:output", "module:1:output"]
    edits = [scale("module:1:output", 2.0)]
    with PyveneInspector(relu) as lens, HooksInspector(relu) as plain:
        got, want = (at.gradients(X, sites, lambda out: out[:, 1], edits=edits) for at in (lens, plain))
        assert all(torch.equal(got[site], want[site]) and got[site].any() for site in sites)
    for family in FAMILIES:  # fused attention keeps z for its backward
        model, sites = model_of(family, "sdpa"), ["blocks.0.resid_pre", "blocks.1.attn.z"]
        edits = [scale("blocks.0.attn.z", 2.0, heads=[1])]
        with PyveneInspector(model) as lens, HooksInspector(model) as plain:
            got, want = (at.gradients(IDS, sites, metric, edits=edits) for at in (lens, plain))
        assert all(torch.equal(got[site], want[site]) and got[site].any() for site in sites)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_at_a_pattern_also_of_a_frozen_model(family: str, frozen: bool) -> None:
    model = model_of(family, "sdpa").requires_grad_(not frozen)
    with PyveneInspector(model) as lens, HooksInspector(model) as plain:
        for sites in ("blocks.1.attn.pattern", "blocks.*.{attn.pattern,attn.q,resid_pre}"):
            got, want = (at.gradients(IDS, sites, metric) for at in (lens, plain))
            assert list(got) == list(want)
            assert all(torch.allclose(got[s], want[s], rtol=1e-9, atol=1e-14) and got[s].any() for s in got)
    assert model.config._attn_implementation == "sdpa"


def test_a_pattern_that_is_not_returned_is_refused() -> None:
    model = model_of("gpt2")
    model.transformer.h[1].attn.register_forward_hook(lambda module, args, output: (output[0], None))
    with PyveneInspector(model) as lens:
        with pytest.raises(UnsupportedError, match="does not return its pattern"):
            lens.run(IDS, capture="blocks.1.attn.pattern")
        with pytest.raises(UnsupportedError, match="an edit is too late"):
            lens.run(IDS, edits=[zero("blocks.0.attn.pattern", units=[0])])


class Again(nn.Module):
    """One module run twice, an argument by position and one by name."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Tanh()

    def forward(self, x: Tensor, y: Tensor, *, times: int = 1) -> Tensor:
        out: Tensor = self.step(self.step(x)) * times + y
        return out


def test_a_module_run_twice_can_be_edited_and_any_arguments_are_passed() -> None:
    model = Again()
    with PyveneInspector(model) as lens:
        assert torch.equal(lens.run((X, X)).output, X.tanh().tanh() + X)
        run = lens.run({"x": X, "y": X, "times": 3}, edits=[scale("module:step:output", 2.0)])
        assert torch.equal(run.output, (X.tanh() * 2).tanh() * 2 * 3 + X)
        root = lens.run((X, X), capture=["module::output", "module::input"], edits=[zero("module:step:output#1")])
        assert torch.equal(root["module::output"], X)
        assert torch.equal(root["module::input"], X)


def test_a_forward_inside_an_edit_is_none_of_the_run() -> None:
    model = model_of("llama")
    site, inside = "blocks.0.resid_post", []
    with PyveneInspector(model) as lens, PyveneInspector(model) as second, HooksInspector(model) as hooks:

        def twice(part: Tensor) -> Tensor:
            inside.append(second.run(IDS, capture=site, edits=[apply(site, lambda p: p + 1)])[site])
            inside.append(hooks.run(IDS, capture=site)[site] + 1)
            model(IDS)
            return part * 2

        run = lens.run(IDS, capture=site, edits=[apply(site, twice)])
        plain = lens.run(IDS, capture=site)[site]
    assert len(inside) == 2
    assert all(torch.equal(found, plain + 1) for found in inside)
    assert torch.equal(run[site], plain * 2)


def test_an_intervenable_model_is_made_once_for_the_same_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    create = pyvene.IntervenableModel.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(weakref.ref(self))
        create(self, *args, **kwargs)

    monkeypatch.setattr(pyvene.IntervenableModel, "__init__", counted)
    model = model_of("llama")
    lens = PyveneInspector(model)
    value = torch.randn(2, 7, model.config.hidden_size, dtype=torch.float64)
    kept = weakref.ref(value)
    for _ in range(2):
        lens.run(IDS, capture="blocks.0.resid_post")
        lens.generate(IDS, max_new_tokens=3, capture="blocks.0.resid_post")
        lens.run(IDS, capture="blocks.0.resid_post", until="blocks.0.resid_post")
        lens.run(IDS, edits=[replace("blocks.0.resid_post", value)])
    assert len(made) == 1
    del value
    gc.collect()
    assert kept() is None, "an edit outlives its run"
    lens.close()
    gc.collect()
    assert made[0]() is None, "closing keeps pyvene's model"


def test_native_is_a_component_of_pyvene() -> None:
    model = model_of("llama")
    with PyveneInspector(model) as lens:
        run = lens.run(IDS, capture=["native:model.layers[1].self_attn.output", "blocks.1.attn.out"])
        assert torch.equal(run["native:model.layers[1].self_attn.output"], run["blocks.1.attn.out"])
        edited = lens.run(IDS, edits=[zero("native:model.layers.1.self_attn.output", positions=[2])])
        native = "native:" + lens.native_address("blocks.1.attn.out")
        same = lens.run(IDS, capture=native, edits=[zero("blocks.1.attn.out", positions=[2])])
        assert torch.equal(edited.logits, same.logits)
        assert not same[native][:, 2].any(), "a capture by a native name does not see the edit of its site"
        assert not torch.equal(edited.logits, run.logits)
        for name, said in {
            "native:model.layers[1].mpl.output": "native:model.layers.1.mlp.output",
            "native:model.layers[99].mlp.output": "no module at 'model.layers\\[99\\].mlp'",
            "native:model.layers[1].mlp": "ends in .input or .output",
        }.items():
            with pytest.raises(SiteError, match=said):
                lens.run(IDS, capture=name)


def test_importing_pyvene_this_way_leaves_the_process_alone() -> None:
    program = """
import sys, torch, warnings, logging
backward, filters, level = torch.Tensor.backward, len(warnings.filters), logging.root.level
state = torch.get_rng_state()
import crosslens.adapters.pyvene
assert "pyvene" in sys.modules and "nnsight" not in sys.modules
assert torch.Tensor.backward is backward and not hasattr(object, "save")
assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
assert logging.root.level == level and not logging.root.handlers
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
