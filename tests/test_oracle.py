"""The oracle against plain Hugging Face forwards, plain PyTorch hooks, arithmetic and its own definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from crosslens.adapters.conformance.oracle import Oracle
from crosslens.adapters.errors import EditError, InputError, ModelError, SiteError

NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 24, "intermediate_size": 40, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "num_attention_heads": 4},
    "gpt2": {"n_embd": 24, "n_head": 3, "n_positions": 40, "layer_norm_epsilon": 1e-3},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-3,
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 8, "tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "gpt2": ("gpt2", {}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False, "n_inner": 20}),
    "gpt2-tanh": ("gpt2", {"activation_function": "gelu_pytorch_tanh"}),
    "neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "neox-serial": (
        "gpt_neox",
        {"rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "neox-unbiased": ("gpt_neox", {"rotary_pct": 0.5, "attention_bias": False, "tie_word_embeddings": True}),
}
FAMILIES = ["llama", "gpt2", "neox", "neox-serial"]


def build(variant: str, attention: str = "sdpa") -> Any:
    """A float64 model of three layers, every parameter random: no bias is 0 and no norm's gain is 1."""
    family, options = VARIANTS[variant]
    config = AutoConfig.for_model(family, vocab_size=37, num_hidden_layers=3, **NO_SPECIAL, **SIZES[family], **options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        gain = parameter.ndim == 1 and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.3 * noise + (1 if gain else 0)
    model.tie_weights()
    return model


LENGTHS = (9, 5, 7)
TOKENS = torch.randint(0, 37, (3, 9), generator=torch.Generator().manual_seed(3))


def padded(side: str) -> tuple[Tensor, Tensor | None]:
    """The first `LENGTHS` tokens of each row of TOKENS as a batch; the padding is an ordinary token."""
    if side == "none":
        return TOKENS, None
    ids, mask = torch.full_like(TOKENS, 11), torch.zeros_like(TOKENS)
    for row, length in enumerate(LENGTHS):
        here = slice(0, length) if side == "right" else slice(9 - length, 9)
        ids[row, here], mask[row, here] = TOKENS[row, :length], 1
    return ids, mask


def hf_forward(model: Any, ids: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    real = torch.ones_like(ids) if mask is None else mask
    positions = (real.cumsum(1) - 1).clamp(min=0)
    if mask is not None and model.config._attn_implementation == "eager":
        # A float64 model masks with the least float64. Eager attention of llama and gpt_neox casts it to
        # float32, where it is -inf: the softmax of a padded query that sees nothing is NaN, and the next
        # layer spreads it to real tokens. The same mask made with the least float32 is safe.
        visible = mask[:, None, None, :].bool() & torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
        real = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min).double()
    return model(input_ids=ids, attention_mask=real, position_ids=positions, use_cache=False, **kwargs)


@dataclass
class Edit:
    """An edit as the oracle sees it."""

    kind: str
    site: str
    value: Any = None
    rows: list[int] | None = None
    positions: list[int] | None = None
    heads: list[int] | None = None
    units: list[int] | None = None
    steps: list[int] | None = None


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def oracle(model: Any) -> Oracle:
    return Oracle(model)


def serial(oracle: Oracle) -> bool:
    return "blocks.0.resid_mid" in oracle.sites


# --- the plain forward: every site against a hook on the module that makes it ---------------------------


BODY = {  # embedding, blocks, last norm
    "llama": ("model.embed_tokens", "model.layers", "model.norm"),
    "gpt2": ("transformer.wte", "transformer.h", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm"),
}
QKV = {
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "gpt2": ["attn.c_attn"] * 3,
    "gpt_neox": ["attention.query_key_value"] * 3,
}
BLOCK = {  # output projection, norm before the MLP, down projection
    "llama": ("self_attn.o_proj", "post_attention_layernorm", "mlp.down_proj"),
    "gpt2": ("attn.c_proj", "ln_2", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "post_attention_layernorm", "mlp.dense_4h_to_h"),
}


def in_shape(config: Any, site: str, x: Tensor) -> Tensor:
    """A module's tensor, (batch, pos, features), in the shape of the site that it holds."""
    heads, part = config.num_attention_heads, site.rpartition(".")[2]
    if part == "z" or (part == "q" and config.model_type == "llama"):
        return x.view(*x.shape[:2], heads, -1)
    if part in ("k", "v") and config.model_type == "llama":
        return x.view(*x.shape[:2], config.num_key_value_heads, -1)
    if part in ("q", "k", "v") and config.model_type == "gpt2":
        return x.view(*x.shape[:2], 3, heads, -1)[:, :, "qkv".index(part)]
    if part in ("q", "k", "v"):
        return x.view(*x.shape[:2], heads, 3, -1)[:, :, :, "qkv".index(part)]
    return x


def modules_of(model: Any) -> dict[str, tuple[nn.Module, str]]:
    """site -> (the module that holds it, "in" or "out"), for every site but `attn.pattern` and `logits`."""
    family = model.config.model_type
    embedding, blocks, norm = (model.get_submodule(path) for path in BODY[family])
    found = {"embed": (embedding, "out"), "final_norm": (norm, "out")}
    for layer, block in enumerate(blocks):
        q, k, v = (block.get_submodule(path) for path in QKV[family])
        projection, second_norm, down = (block.get_submodule(path) for path in BLOCK[family])
        held = {
            "resid_pre": (block, "in"),
            "attn.q": (q, "out"),
            "attn.k": (k, "out"),
            "attn.v": (v, "out"),
            "attn.z": (projection, "in"),
            "attn.out": (projection, "out"),
            "mlp.post": (down, "in"),
            "mlp.out": (down, "out"),
            "resid_post": (block, "out"),
        }
        if not getattr(model.config, "use_parallel_residual", False):
            held["resid_mid"] = (second_norm, "in")
        found |= {f"blocks.{layer}.{site}": place for site, place in held.items()}
    return found


def hf_run(
    model: Any, ids: Tensor, mask: Tensor | None, changes: Mapping[str, Callable[[Tensor], Tensor]] = {}
) -> dict[str, Tensor]:  # fmt: skip
    """One plain forward: every site read by a hook, and the tensors of `changes` changed by one."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for site, (module, side) in modules_of(model).items():

            def touch(x: Tensor, site: str = site) -> Tensor:
                x = changes[site](x.clone()) if site in changes else x
                seen[site] = in_shape(model.config, site, x.clone())
                return x

            def entering(_: Any, args: Any, touch: Any = touch) -> Any:
                return (touch(args[0]), *args[1:])

            def leaving(_: Any, __: Any, out: Any, touch: Any = touch) -> Any:
                return (touch(out[0]), *out[1:]) if isinstance(out, tuple) else touch(out)

            if side == "in":
                handle = module.register_forward_pre_hook(entering)
            else:
                handle = module.register_forward_hook(leaving)
            hooks.callback(handle.remove)
        seen["logits"] = hf_forward(model, ids, mask).logits
    return seen


def assert_same(mine: Tensor, other: Tensor, mask: Tensor | None = None, atol: float = 1e-10) -> None:
    """Equal at real tokens."""
    assert mine.shape == other.shape
    assert mine.dtype == torch.float64
    real = torch.ones(mine.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(mine[real], other[real], rtol=0, atol=atol)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_site_is_what_the_plain_model_computes(variant: str, attention: str, side: str) -> None:
    model = build(variant, attention)
    ids, mask = padded(side)
    run, expected = Oracle(model).run(ids, mask), hf_run(model, ids, mask)
    patterns = {f"blocks.{layer}.attn.pattern" for layer in range(3)}
    assert run.sites.keys() == expected.keys() | patterns
    for site, tensor in expected.items():
        assert_same(run.sites[site], tensor, mask)
    assert all(tensor.isfinite().all() for tensor in run.sites.values())


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_pattern_is_that_of_the_plain_model(variant: str, side: str) -> None:
    model = build(variant, "eager")
    ids, mask = padded(side)
    run = Oracle(model).run(ids, mask)
    with torch.no_grad():
        expected = hf_forward(model, ids, mask, output_attentions=True).attentions
    for layer, pattern in enumerate(expected):
        mine = run.sites[f"blocks.{layer}.attn.pattern"]
        assert_same(mine.transpose(1, 2), pattern.transpose(1, 2), mask)  # batch, query, head, key


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["llama", "neox", "neox-serial"])
def test_without_islands_the_oracle_differs_by_float32_rounding(variant: str, attention: str) -> None:
    model = build(variant, attention)
    pure, expected = Oracle(model, islands=None).run(TOKENS).logits, hf_run(model, TOKENS, None)["logits"]
    error = ((pure - expected).norm() / expected.norm()).item()
    assert 1e-10 < error < 1e-5


def test_gpt2_has_no_islands() -> None:
    for attention in ("sdpa", "eager"):
        model = build("gpt2", attention)
        assert torch.equal(Oracle(model).run(TOKENS).logits, Oracle(model, islands=None).run(TOKENS).logits)


def test_attention_implementation_can_be_named() -> None:
    eager = Oracle(build("llama", "eager")).run(TOKENS).logits
    named = Oracle(build("llama", "sdpa"), attn_implementation="eager").run(TOKENS).logits
    assert torch.equal(eager, named)
    assert not torch.equal(eager, Oracle(build("llama", "sdpa")).run(TOKENS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", FAMILIES)
def test_a_model_of_lower_precision_differs_by_its_rounding(variant: str, dtype: torch.dtype) -> None:
    model = build(variant).to(dtype)
    mine, expected = Oracle(model).run(TOKENS).logits, hf_run(model, TOKENS, None)["logits"].double()
    assert mine.dtype == torch.float64
    assert (mine - expected).norm() / expected.norm() < 40 * torch.finfo(dtype).eps


def test_a_hole_in_the_mask_is_no_token(model: Any, oracle: Oracle) -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, 3] = mask[1, 0] = mask[1, 6] = 0
    assert_same(oracle.run(TOKENS, mask).logits, hf_run(model, TOKENS, mask)["logits"], mask)
    alone = oracle.run(TOKENS[:1, [0, 1, 2, 4, 5, 6, 7, 8]]).logits
    assert_same(oracle.run(TOKENS, mask).logits[:1, [0, 1, 2, 4, 5, 6, 7, 8]], alone)


def test_the_oracle_leaves_the_model_alone_and_does_not_follow_it() -> None:
    model = build("gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    oracle = Oracle(model)
    logits = oracle.run(TOKENS).logits
    oracle.gradients(TOKENS, ["embed"], lambda x: x.sum())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.get_parameter("transformer.wte.weight").data.zero_()
    assert torch.equal(oracle.run(TOKENS).logits, logits)


# --- invariants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_the_residual_stream_adds_up(oracle: Oracle, side: str) -> None:
    ids, mask = padded(side)
    s = oracle.run(ids, mask).sites
    for layer in range(3):
        pre, attn, mlp, post = (
            s[f"blocks.{layer}.{name}"] for name in ("resid_pre", "attn.out", "mlp.out", "resid_post")
        )
        assert_same(post, pre + attn + mlp, mask, atol=1e-12)
        if serial(oracle):
            assert_same(s[f"blocks.{layer}.resid_mid"], pre + attn, mask, atol=1e-12)
        if layer:
            assert torch.equal(pre, s[f"blocks.{layer - 1}.resid_post"])


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_pattern_is_causal_sums_to_one_and_sees_no_padding(oracle: Oracle, side: str) -> None:
    ids, mask = padded(side)
    real = torch.ones_like(ids) if mask is None else mask
    pattern = oracle.run(ids, mask).sites["blocks.1.attn.pattern"].transpose(1, 2)  # batch, query, head, key
    assert_same(pattern.sum(-1), torch.ones(pattern.shape[:3], dtype=torch.float64), mask, atol=1e-12)
    assert (pattern.transpose(1, 2).triu(1) == 0).all()
    for row, query in real.nonzero().tolist():
        assert (pattern[row, query][:, real[row] == 0] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_in_a_batch_is_the_row_alone(oracle: Oracle, side: str) -> None:
    ids, mask = padded(side)
    run = oracle.run(ids, mask)
    assert mask is not None
    for row, length in enumerate(LENGTHS):
        alone, real = oracle.run(TOKENS[row : row + 1, :length]), mask[row].bool()
        for site, tensor in alone.sites.items():
            mine = run.sites[site][row]
            mine = mine[:, real][:, :, real] if site.endswith("pattern") else mine[real]
            torch.testing.assert_close(mine, tensor[0], rtol=0, atol=1e-10)


# --- edits -----------------------------------------------------------------------------------------------


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


HOOKABLE = ["embed", "blocks.1.resid_pre", "blocks.1.attn.out", "blocks.1.mlp.post", "blocks.1.mlp.out"]
HOOKABLE += ["blocks.1.resid_post", "final_norm"]


@pytest.mark.parametrize("kind", ["replace", "add", "scale", "zero", "apply"])
@pytest.mark.parametrize("site", HOOKABLE)
def test_edits_of_a_slice_agree_with_hooks(model: Any, oracle: Oracle, site: str, kind: str) -> None:
    width = oracle.run(TOKENS).sites[site].shape[-1]
    value = noise(2, 2, 3)
    rows, positions, units = [2, 0], [1, -2], [0, 5, width - 1]

    def fn(x: Tensor) -> Tensor:
        return x**2 + value

    given = {"replace": value, "add": value, "scale": -1.5, "zero": None, "apply": fn}[kind]

    def change(x: Tensor) -> Tensor:
        for i, row in enumerate((2, 0)):
            for j, column in enumerate((1, 7)):
                for k, unit in enumerate((0, 5, width - 1)):
                    old, new = x[row, column, unit].item(), value[i, j, k].item()
                    results = {"replace": new, "add": old + new, "scale": -1.5 * old, "zero": 0.0}
                    x[row, column, unit] = results.get(kind, old**2 + new)
        return x

    mine = oracle.run(TOKENS, edits=[Edit(kind, site, given, rows, positions, None, units)])
    for name, tensor in hf_run(model, TOKENS, None, {site: change}).items():
        assert_same(mine.sites[name], tensor)


@pytest.mark.parametrize("site", ["attn.q", "attn.k", "attn.v", "attn.z"])
def test_edits_of_heads_agree_with_hooks(model: Any, oracle: Oracle, site: str) -> None:
    name = f"blocks.1.{site}"
    heads, width = oracle.run(TOKENS).sites[name].shape[2:]
    value = noise(3, 1, 1, 2)

    def change(x: Tensor) -> Tensor:
        view = in_shape(model.config, name, x)  # a view: writing to it writes to x
        view[:, 4, heads - 1, 1] = value[:, 0, 0, 0]
        view[:, 4, heads - 1, width - 2] = value[:, 0, 0, 1]
        return x

    edit = Edit("replace", name, value, positions=[4], heads=[-1], units=[1, -2])
    mine = oracle.run(TOKENS, edits=[edit])
    for other, tensor in hf_run(model, TOKENS, None, {name: change}).items():
        assert_same(mine.sites[other], tensor)
    assert (mine.logits - oracle.run(TOKENS).logits).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["llama", "gpt2", "neox-serial"])
def test_an_edit_at_resid_mid_reaches_the_mlp_and_the_residual(variant: str) -> None:
    model = build(variant)
    oracle = Oracle(model)
    delta, base = noise(3, 9, oracle.run(TOKENS).sites["embed"].shape[-1]), oracle.run(TOKENS).sites
    mine = oracle.run(TOKENS, edits=[Edit("add", "blocks.1.resid_mid", delta)]).sites
    # resid_mid = resid_pre + attn.out: the same change made by a hook at attn.out gives the same stream.
    expected = hf_run(model, TOKENS, None, {"blocks.1.attn.out": lambda x: x + delta})
    assert_same(mine["logits"], expected["logits"])
    assert_same(mine["blocks.1.attn.out"], base["blocks.1.attn.out"])
    assert_same(mine["blocks.1.resid_mid"], base["blocks.1.resid_mid"] + delta)
    assert_same(mine["blocks.1.resid_post"], mine["blocks.1.resid_mid"] + mine["blocks.1.mlp.out"])
    assert (mine["blocks.1.mlp.out"] - base["blocks.1.mlp.out"]).abs().max() > 1e-3


def test_a_pattern_that_looks_only_at_itself_makes_z_equal_v(oracle: Oracle) -> None:
    base = oracle.run(TOKENS).sites
    heads = base["blocks.2.attn.z"].shape[2]
    itself = torch.eye(9, dtype=torch.float64).expand(3, heads, 9, 9)
    z = oracle.run(TOKENS, edits=[Edit("replace", "blocks.2.attn.pattern", itself)]).sites["blocks.2.attn.z"]
    v = base["blocks.2.attn.v"]
    assert_same(z, v.repeat_interleave(heads // v.shape[2], dim=2), atol=1e-12)


def test_pattern_edits_select_heads_queries_and_keys(oracle: Oracle) -> None:
    ids, mask = padded("left")
    base = oracle.run(ids, mask).sites["blocks.0.attn.pattern"]
    edit = Edit("scale", "blocks.0.attn.pattern", 2.0, rows=[1, 2], positions=[-1], heads=[1], units=[0, 3])
    expected = base.clone()
    expected[1, 1, 8, [4, 7]] *= 2  # row 1 holds 5 tokens, in columns 4 to 8
    expected[2, 1, 8, [2, 5]] *= 2  # row 2 holds 7
    assert torch.equal(oracle.run(ids, mask, [edit]).sites["blocks.0.attn.pattern"], expected)


def test_every_site_replaced_by_its_own_value_changes_nothing(oracle: Oracle) -> None:
    base = oracle.run(TOKENS)
    run = oracle.run(TOKENS, edits=[Edit("replace", site, value) for site, value in base.sites.items()])
    assert all(torch.equal(run.sites[site], base.sites[site]) for site in base.sites)


def test_every_site_reaches_the_logits_and_nothing_before_it(oracle: Oracle) -> None:
    base = oracle.run(TOKENS).sites
    for i, site in enumerate(oracle.sites):
        run = oracle.run(TOKENS, edits=[Edit("zero", site, rows=[1], units=[0])]).sites
        expected = base[site].clone()
        expected[1, ..., 0] = 0
        assert torch.equal(run[site], expected)
        assert all(torch.equal(run[earlier], base[earlier]) for earlier in oracle.sites[:i])
        assert torch.equal(run["logits"][0], base["logits"][0])
        assert (run["logits"][1] - base["logits"][1]).abs().max() > 1e-3


def test_edits_of_one_site_are_made_in_order(oracle: Oracle) -> None:
    base = oracle.run(TOKENS).sites["embed"]
    add, double = Edit("add", "embed", torch.ones_like(base)), Edit("scale", "embed", 2.0)
    assert_same(oracle.run(TOKENS, edits=[add, double]).sites["embed"], 2 * base + 2)
    assert_same(oracle.run(TOKENS, edits=[double, add]).sites["embed"], 2 * base + 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_edit_by_position_means_the_same_alone_and_padded(oracle: Oracle, side: str) -> None:
    ids, mask = padded(side)
    assert mask is not None
    width = oracle.run(ids).sites["embed"].shape[-1]
    value = noise(3, 2, width)
    together = oracle.run(ids, mask, [Edit("replace", "blocks.1.resid_post", value, positions=[-1, 2])])
    for row, length in enumerate(LENGTHS):
        edit = Edit("replace", "blocks.1.resid_post", value[row : row + 1], positions=[-1, 2])
        alone = oracle.run(TOKENS[row : row + 1, :length], edits=[edit]).sites
        assert torch.equal(alone["blocks.1.resid_post"][0, [length - 1, 2]], value[row])
        for site in ("blocks.1.resid_post", "blocks.2.resid_post", "logits"):
            mine = together.sites[site][row, mask[row].bool()]
            torch.testing.assert_close(mine, alone[site][0], rtol=0, atol=1e-10)


# --- gradients -------------------------------------------------------------------------------------------


def metric(logits: Tensor) -> Tensor:
    """(batch, pos, d_vocab) -> (batch,)"""
    return logits[:, -1, 5] - logits[:, -2, 3] ** 2


def test_gradient_at_the_embedding_is_that_of_the_plain_model(model: Any, oracle: Oracle) -> None:
    ids, mask = padded("left")
    assert mask is not None
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
    (expected,) = torch.autograd.grad(metric(out.logits).sum(), embeddings)
    mine = oracle.gradients(ids, ["embed"], metric, mask)["embed"]
    # A float32 norm also rounds the gradient, by as much as 1e-7 of it.
    tolerance = 1e-5 if model.config.model_type == "llama" else 1e-10
    assert_same(mine, expected, mask, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("variant", FAMILIES)
def test_gradients_are_finite_differences_of_edits(variant: str) -> None:
    oracle, step = Oracle(build(variant), islands=None), 1e-5
    edits = [Edit("scale", "blocks.1.attn.out", 0.5), Edit("zero", "blocks.0.mlp.post", positions=[2])]
    found = oracle.gradients(TOKENS, oracle.sites, metric, edits=edits)
    for site, grad in found.items():
        direction = noise(*grad.shape)
        up, down = (
            metric(oracle.run(TOKENS, edits=[*edits, Edit("add", site, sign * step * direction)]).logits).sum()
            for sign in (1, -1)
        )
        expected = (up - down) / (2 * step)
        torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-5, atol=1e-6)


def test_gradient_at_a_replaced_site_is_taken_at_the_new_value(oracle: Oracle) -> None:
    value = torch.zeros_like(oracle.run(TOKENS).sites["embed"])
    edits = [Edit("replace", "blocks.1.resid_post", value)]
    sites = ["blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_pre"]
    before, there, after = oracle.gradients(TOKENS, sites, metric, edits=edits).values()
    assert (before == 0).all()  # nothing of it is left
    assert torch.equal(there, after)
    assert there.abs().max() > 0


def test_gradients_work_inside_no_grad_and_run_keeps_no_graph(oracle: Oracle) -> None:
    with torch.no_grad():
        grads = oracle.gradients(TOKENS, ["logits"], lambda logits: logits.sum())
    assert (grads["logits"] == 1).all()
    assert not any(tensor.requires_grad for tensor in oracle.run(TOKENS).sites.values())
    run = oracle.run(TOKENS, requires_grad=True)
    (grad,) = torch.autograd.grad(run.sites["blocks.1.resid_pre"].sum(), run.sites["embed"])
    assert grad.abs().max() > 0


# --- generation ------------------------------------------------------------------------------------------


def test_generate_is_greedy_generation_of_the_plain_model(model: Any, oracle: Oracle) -> None:
    ids, mask = padded("left")
    assert mask is not None
    tokens, run = oracle.generate(ids, 6, mask)
    expected = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens, expected)
    again = oracle.run(tokens[:, :-1], torch.cat([mask, torch.ones(3, 5, dtype=mask.dtype)], dim=1))
    assert all(torch.equal(run.sites[site], again.sites[site]) for site in oracle.sites)


def continuation(oracle: Oracle, side: str, edits: list[Edit]) -> Tensor:
    ids, mask = padded(side)
    return oracle.generate(ids, 6, mask, edits)[0][:, 9:]


def steering(oracle: Oracle, **where: Any) -> Edit:
    return Edit("add", "blocks.1.resid_post", 40 * noise(3, 1, oracle.run(TOKENS).sites["embed"].shape[-1]), **where)


@pytest.mark.parametrize("where", [{}, {"positions": [8]}, {"positions": [-1]}, {"steps": [1, 3]}])
def test_generation_with_edits_means_the_same_however_padded(oracle: Oracle, where: Any) -> None:
    edit = steering(oracle, **where)
    left, right = (continuation(oracle, side, [edit]) for side in ("left", "right"))
    assert torch.equal(left, right)
    assert not torch.equal(left, continuation(oracle, "left", []))
    for row, length in enumerate(LENGTHS):
        mine = Edit(edit.kind, edit.site, edit.value[row : row + 1], **where)
        alone = oracle.generate(TOKENS[row : row + 1, :length], 6, edits=[mine])[0]
        assert torch.equal(alone[0, length:], left[row])


def test_positions_and_steps_in_generation_are_those_of_one_run(oracle: Oracle) -> None:
    """One run over all the tokens, with the same columns edited, is what generation must have computed."""
    width = oracle.run(TOKENS).sites["embed"].shape[-1]
    value = noise(3, 1, width)
    for where, columns in [
        ({"positions": [10]}, [10]),
        ({"positions": [-2]}, [7]),
        ({"steps": [0]}, [*range(9)]),
        ({"steps": [4, 2]}, [10, 12]),
        ({}, [*range(14)]),
    ]:
        tokens, run = oracle.generate(TOKENS, 6, edits=[Edit("replace", "blocks.0.mlp.out", value, **where)])
        expected = oracle.run(
            tokens[:, :-1],
            edits=[Edit("replace", "blocks.0.mlp.out", value.expand(3, len(columns), width), positions=columns)],
        )
        assert all(torch.equal(run.sites[site], expected.sites[site]) for site in oracle.sites)
        assert torch.equal(run.logits.argmax(-1)[:, 8:], tokens[:, 9:])


def test_apply_is_called_with_what_comes_into_being_at_each_step(oracle: Oracle) -> None:
    shapes: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    ids, mask = padded("left")
    width = oracle.run(ids).sites["embed"].shape[-1]
    oracle.generate(ids, 3, mask, [Edit("apply", "embed", note)])
    assert shapes[-3:] == [(3, 9, width), (3, 1, width), (3, 1, width)]
    shapes.clear()
    # Position 8 is in the prompt of row 0 (9 tokens), comes at step 2 in row 2 (7), at step 4 in row 1 (5).
    oracle.generate(ids, 5, mask, [Edit("apply", "embed", note, positions=[0, 8])])
    assert shapes[-5:] == [(1, 2, width), (1, 1, width), (1, 1, width), (1, 1, width), (1, 1, width)]
    shapes.clear()
    oracle.generate(ids, 2, mask, [Edit("apply", "blocks.0.attn.pattern", note, heads=[0])])
    assert shapes[-2:] == [(3, 1, 9, 9), (3, 1, 1, 10)]


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "change", "text"),
    [
        ("llama", {"model_type": "mistral"}, "llama, gpt2, gpt_neox, not 'mistral'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
            "rope_type",
        ),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rotary frequencies"),
        ("neox", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ("llama", {"sliding_window": 4}, "sliding_window"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("llama", {"hidden_act": "mish"}, "activation 'mish'"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation 'quick_gelu'"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("neox", {"num_hidden_layers": 2}, "gpt_neox.layers.2."),
        ("neox", {"num_hidden_layers": 4}, "gpt_neox.layers.3."),
        ("llama", {"_attn_implementation_internal": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_models_that_the_oracle_would_get_wrong_are_refused(variant: str, change: dict[str, Any], text: str) -> None:
    model = build(variant)
    for name, value in change.items():
        model.config.__dict__[name] = value
        if name == "model_type":
            model.config = type("Config", (), {"model_type": value})()
    with pytest.raises(ModelError, match=text):
        Oracle(model)


def test_modules_that_are_no_plain_model_are_refused() -> None:
    with pytest.raises(ModelError, match="not 'Linear'"):
        Oracle(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="no weight 'transformer"):
        Oracle(build("gpt2").get_submodule("transformer"))
    adapted = build("llama")
    adapted.model.layers[1].mlp.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.extra"):
        Oracle(adapted)
    quantized = build("gpt2")
    quantized.lm_head.register_buffer("scales", torch.zeros(2, dtype=torch.int8))
    with pytest.raises(ModelError, match="int8"):
        Oracle(quantized)


ONE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("edit", "error", "text"),
    [
        (Edit("zero", "blocks.3.mlp.out"), SiteError, r"'blocks\.3\.mlp\.out'.*blocks\.2\.mlp\.out"),
        (Edit("swap", "embed"), EditError, "'swap' at 'embed'"),
        (Edit("zero", "embed", rows=[3]), EditError, "row 3 is not in -3 to 2"),
        (
            Edit("zero", "embed", positions=[5]),
            EditError,
            "row 1 has no position 5; its positions are 0 to 4",
        ),
        (Edit("zero", "embed", positions=[-6]), EditError, "row 1 has no position -6"),
        (Edit("zero", "embed", heads=[0]), EditError, "no head axis"),
        (Edit("zero", "embed", units=[1000]), EditError, "unit 1000"),
        (Edit("zero", "blocks.0.attn.z", heads=[-9]), EditError, "head -9"),
        (Edit("zero", "blocks.0.attn.pattern", units=[5]), EditError, "row 1 has no position 5"),
        (Edit("zero", "embed", units=[]), EditError, "names no unit"),
        (Edit("zero", "embed", rows=[0, -3]), EditError, "names one row twice"),
        (
            Edit("zero", "embed", rows=[0], positions=[8, -1], steps=[0]),
            EditError,
            "names one position twice",
        ),
        (Edit("zero", "embed", steps=[1]), EditError, "step 1 is not in 0 to 0"),
        (Edit("replace", "embed", ONE), EditError, r"shape \(3, 9, \d+\), not \(1,\)"),
        (Edit("add", "embed", 1.0), EditError, "takes a tensor of shape .* not float"),
        (Edit("scale", "embed", ONE, rows=[0], positions=[0]), EditError, r"shape \(1, 1, \d+\)"),
        (Edit("apply", "embed", lambda x: x[:1]), EditError, "must return a tensor of shape"),
        (Edit("apply", "embed", lambda x: None), EditError, "must return a tensor of shape"),
    ],
)
def test_edits_that_do_not_fit_are_refused(oracle: Oracle, edit: Edit, error: type[Exception], text: str) -> None:
    ids, mask = padded("right")
    with pytest.raises(error, match=text):
        oracle.run(ids, mask, [edit])


def test_other_refusals(oracle: Oracle) -> None:
    with pytest.raises(SiteError, match="'logit'"):
        oracle.gradients(TOKENS, ["logit"], metric)
    with pytest.raises(InputError, match="input_ids"):
        oracle.run(TOKENS[0])
    with pytest.raises(InputError, match="input_ids"):
        oracle.run(TOKENS.double())
    with pytest.raises(InputError, match="attention_mask"):
        oracle.run(TOKENS, torch.ones(3, 8))
    with pytest.raises(InputError, match="attention_mask"):
        oracle.run(TOKENS, torch.zeros_like(TOKENS))
    with pytest.raises(InputError, match="at least 1"):
        oracle.generate(TOKENS, 0)
    # Token 14 would be the last: it is generated, and never read.
    with pytest.raises(EditError, match="positions are 0 to 13"):
        oracle.generate(TOKENS, 6, edits=[Edit("zero", "embed", positions=[14])])
    with pytest.raises(EditError, match="step 6 is not in 0 to 5"):
        oracle.generate(TOKENS, 6, edits=[Edit("zero", "embed", steps=[6])])


def test_a_parallel_model_has_no_resid_mid() -> None:
    assert not serial(Oracle(build("neox")))
    with pytest.raises(SiteError, match="resid_mid"):
        Oracle(build("neox")).run(TOKENS, edits=[Edit("zero", "blocks.0.resid_mid")])
