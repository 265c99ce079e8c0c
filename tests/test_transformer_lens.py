"""The TransformerLens backend: that it is TransformerLens that runs, and what only this library does."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM

from crosslens.adapters import (
    Inspector,
    SiteError,
    UnsupportedError,
    add,
    apply,
    open_inspector,
    replace,
    scale,
    zero,
)
from crosslens.adapters.conformance.models import tiny_model

pytest.importorskip("transformer_lens")

from transformer_lens.hook_points import HookPoint

FAMILIES = ("llama", "gpt2", "gpt_neox")
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def model_of(family: str, dtype: torch.dtype = torch.float64, attention: str = "eager") -> Any:
    return tiny_model(family, dtype=dtype, attn_implementation=attention)[0]


def opened(model: nn.Module) -> Inspector:
    return open_inspector("transformer_lens", model)


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -1, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_comes_from_a_hook_point_of_transformer_lens(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[str | None] = []
    passed: list[str | None] = []
    add_hook, forward = HookPoint.add_hook, HookPoint.forward

    def counted_add(self: HookPoint, *args: Any, **kwargs: Any) -> Any:
        hooked.append(self.name)
        return add_hook(self, *args, **kwargs)

    def counted_forward(self: HookPoint, x: Any) -> Any:
        if self.fwd_hooks:
            passed.append(self.name)
        return forward(self, x)

    model = model_of(family)
    with opened(model) as lens:
        for module in model.modules():  # hooks of after the opening belong to the caller's model, which never runs
            module.register_forward_hook(lambda *_: pytest.fail("the caller's own modules ran"))
        sites = [site.name for site in lens.sites() if site.kind == "canonical"]
        monkeypatch.setattr(HookPoint, "add_hook", counted_add)
        monkeypatch.setattr(HookPoint, "forward", counted_forward)
        run = lens.run(IDS, capture=[*sites, "native:blocks.1.hook_out"])  # another name of resid_post
        assert len(run) - 1 == len(sites) == len(hooked) == len(set(hooked))
        assert sorted(map(str, passed)) == sorted(map(str, hooked)), "each hook point fires once"
        assert "blocks.1.attn.q.hook_out" in hooked
        assert "blocks.1.attn.hook_pattern" in hooked
        bridge = lens._bridge  # type: ignore[attr-defined]
        assert not any(point.fwd_hooks for point in bridge.hook_dict.values()), "hooks stay after the run"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_computes_what_the_model_computes_to_the_bit_also_while_training(family: str, dtype: torch.dtype) -> None:
    model = model_of(family, dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    with opened(model) as lens:
        plain = lens.run(IDS).logits
        assert torch.equal(plain, model(IDS).logits)
        model.train()  # after the opening
        torch.manual_seed(1)
        dropped = lens.run(IDS).logits
        assert torch.equal(dropped, model(IDS).logits), "the same random state draws the same dropout"
        assert not torch.equal(dropped, plain)
        model.eval()
        assert torch.equal(lens.run(IDS).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_callers_and_a_training_step_is_seen(family: str) -> None:
    model = model_of(family)
    with opened(model) as lens:
        bridge = lens._bridge  # type: ignore[attr-defined]
        own = {tensor.data_ptr() for tensor in model.state_dict().values()}
        copied = [name for name, p in bridge.named_parameters() if p.data_ptr() not in own]
        assert not copied
        before = lens.run(IDS).logits
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert torch.equal(lens.run(IDS).logits, model(IDS).logits)
        assert not torch.allclose(lens.run(IDS).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_resid_mid_edit_reaches_mlp_and_residual_where_transformer_lens_reaches_one(family: str) -> None:
    mid, out, post = (f"blocks.1.{name}" for name in ("resid_mid", "mlp.out", "resid_post"))
    model = model_of(family)
    with opened(model) as lens, open_inspector("hooks", model) as hooks:
        value = torch.randn(2, 7, model.config.hidden_size, dtype=torch.float64)
        both = lens.run(IDS, capture=[mid, out, post], edits=[replace(mid, value)])
        assert torch.equal(both[mid], value)
        torch.testing.assert_close(both[post], value + both[out])
        native = lens.run(IDS, capture=[out, post], edits=[replace("native:blocks.1.hook_resid_mid", value)])
        assert torch.equal(native[out], both[out]), "the MLP reads the native edit"
        clean = lens.run(IDS, capture=[mid])[mid]
        torch.testing.assert_close(native[post], clean + native[out])  # and the residual stream does not
        together = [scale("native:blocks.1.ln2.hook_in", 2.0), replace(mid, value)]  # whatever the order given
        mixed = lens.run(IDS, capture=[mid, out, post], edits=together)
        torch.testing.assert_close(mixed[post], value + mixed[out])
        assert not torch.allclose(mixed[out], both[out])
        for edits in ([], [scale(mid, 1.5)]):
            got, want = (
                lens.gradients(IDS, [mid], metric, edits=edits),
                hooks.gradients(IDS, [mid], metric, edits=edits),
            )
            torch.testing.assert_close(got[mid], want[mid])


def test_native_names_are_hook_names_and_their_aliases() -> None:
    with opened(model_of("llama")) as lens:
        names = ["native:blocks.1.hook_resid_post", "native:blocks.1.hook_out", "blocks.1.resid_post"]
        run = lens.run(IDS, capture=names, edits=[add(names[0], torch.ones(2, 7, 32, dtype=torch.float64))])
        assert torch.equal(run[names[0]], run[names[1]])
        assert torch.equal(run[names[0]], run[names[2]])
        rotated = lens.run(IDS, capture=["native:blocks.0.attn.hook_rot_q"])["native:blocks.0.attn.hook_rot_q"]
        assert rotated.shape == (2, 7, 4, 8)
        with pytest.raises(SiteError, match=r"no hook 'blocks.0.hook_resid_pst'.*'native:blocks.0.hook_resid_post'"):
            lens.run(IDS, capture=["native:blocks.0.hook_resid_pst"])
        with pytest.raises(SiteError, match=r"only on request.*use_attn_result"):
            lens.run(IDS, capture=["native:blocks.0.attn.hook_result"])
        with pytest.raises(SiteError, match="never calls it"):  # and an edit there would do nothing
            lens.run(IDS, edits=[zero("native:blocks.0.attn.hook_hidden_states")])


def test_other_architectures_of_transformer_lens_have_native_sites() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    qwen = Qwen3ForCausalLM(
        Qwen3Config(**sizes, **NO_SPECIAL, intermediate_size=48, num_key_value_heads=2, head_dim=8)
    ).eval()
    with opened(qwen) as lens, open_inspector("hooks", qwen) as hooks:
        got = lens.run(IDS, edits=[scale("native:blocks.0.hook_mlp_out", 2.0)]).logits
        want = hooks.run(IDS, edits=[scale("module:model.layers.0.mlp:output", 2.0)]).logits
        torch.testing.assert_close(got, want)
    opt = OPTForCausalLM(OPTConfig(**sizes, **NO_SPECIAL, ffn_dim=48, word_embed_proj_dim=32)).eval()
    with opened(opt) as lens:
        lens.run(IDS, capture=["native:blocks.0.attn.hook_pattern"])
        with pytest.raises(UnsupportedError, match=r"hook_pattern.*edit is discarded"):
            lens.run(IDS, edits=[zero("native:blocks.0.attn.hook_pattern")])


def test_modules_are_refused_with_the_reason() -> None:
    with opened(model_of("llama")) as lens:
        for ask in ({"capture": "module:model.norm:output"}, {"until": "module:model.norm:output"}):
            with pytest.raises(UnsupportedError, match=r"module:model.norm:output.*upstream.*replaces the modules"):
                lens.run(IDS, **ask)
        with pytest.raises(UnsupportedError, match=r"edit\.module.*module:model.norm:output"):
            lens.run(IDS, edits=[zero("module:model.norm:output")])
    with pytest.raises(UnsupportedError, match="cannot wrap a Linear"):
        opened(nn.Linear(3, 3))


def test_what_transformer_lens_would_silently_compute_otherwise() -> None:
    sizes: dict[str, Any] = {"vocab_size": 300, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3}
    with pytest.raises(UnsupportedError, match="scale_attn_weights"):
        opened(GPT2LMHeadModel(GPT2Config(**sizes, **NO_SPECIAL, scale_attn_weights=False)))
    config = GPT2Config(**sizes, **NO_SPECIAL, scale_attn_by_inverse_layer_idx=True)
    model = GPT2LMHeadModel(config).double().eval()
    model.set_attn_implementation("eager")
    with opened(model) as lens:
        assert torch.equal(lens.run(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("family", "path"), [("llama", "model.layers.1.self_attn"), ("gpt2", "transformer.h.1.attn")])
def test_the_callers_hook_on_attention_which_transformer_lens_never_calls(family: str, path: str) -> None:
    model = model_of(family)
    plain = model(IDS).logits
    model.get_submodule(path).register_forward_hook(lambda module, args, out: (out[0] * 2, *out[1:]))
    with opened(model) as lens:
        assert torch.equal(lens.run(IDS).logits, model(IDS).logits)
        assert not torch.allclose(plain, model(IDS).logits)


def test_importing_and_opening_leave_warning_filters_and_log_levels() -> None:
    """In a process of its own: TransformerLens sets both when it is first imported."""
    code = """
import logging, sys, warnings
from crosslens.adapters import open_inspector
from crosslens.adapters.conformance.models import tiny_model
model, tokenizer = tiny_model("gpt2")
warnings.simplefilter("error", UserWarning)  # nor does opening show a warning
before = list(warnings.filters), logging.getLogger("transformers").level
assert "transformer_lens" not in sys.modules
open_inspector("transformer_lens", model, tokenizer).close()
assert "transformer_lens" in sys.modules
assert before == (list(warnings.filters), logging.getLogger("transformers").level)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_closing_lets_go_of_the_bridge_and_no_run_keeps_activations(family: str) -> None:
    lens = opened(model_of(family))
    seen: list[weakref.ref[Tensor]] = []

    def look(part: Tensor) -> Tensor:
        seen.append(weakref.ref(part))
        return part

    lens.run(IDS, edits=[apply(f"blocks.1.{name}", look) for name in ("attn.q", "attn.pattern", "mlp.post")])
    gc.collect()
    assert len(seen) == 3
    assert all(ref() is None for ref in seen)
    bridge = weakref.ref(lens._bridge)  # type: ignore[attr-defined]
    lens.close()
    gc.collect()
    assert bridge() is None
