"""Model families: all backends agree on each, and one that is not known can be given by the caller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace as changed
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crosslens.adapters import (
    Address,
    Family,
    InputError,
    Inspector,
    SiteError,
    UnsupportedError,
    backends,
    check_family,
    draft_family,
    load_backend,
    open_inspector,
    replace,
    zero,
)  # fmt: skip
from crosslens.adapters.architectures import describe, family_of
from crosslens.adapters.capabilities import FAMILY_NAMES
from crosslens.adapters.conformance.models import TINY_FAMILIES, tiny_model
from crosslens.adapters.families import FAMILIES
from crosslens.tasks import known_models, load_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
READERS = [name for name in backends() if load_backend(name).supports()["capture.residual"]]


@cache
def _model(family: str) -> Any:
    return tiny_model(family, dtype=torch.float64)


@cache
def _by_hooks(family: str) -> dict[str, torch.Tensor]:
    with open_inspector("hooks", *_model(family)) as lens:
        return _read(lens)


def _read(lens: Inspector) -> dict[str, torch.Tensor]:
    sites = [site for site in lens.architecture.sites.canonical if not site.endswith("pattern")]
    run = lens.run(IDS, capture=sites)
    edited = lens.run(IDS, edits=[zero("blocks.0.attn.z", heads=[1]), zero("blocks.2.mlp.post", units=[3])])
    return {**{site: run[site] for site in sites}, "edited logits": edited.logits}


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("backend", [name for name in READERS if name != "hooks"])
def test_backends_agree_at_every_site(backend: str, family: str) -> None:
    if not load_backend(backend).supports()[f"family.{family}"]:
        with pytest.raises(UnsupportedError, match=rf"family\.{family}"):
            open_inspector(backend, *_model(family))
        return
    with open_inspector(backend, *_model(family)) as lens:
        got = _read(lens)
    want = _by_hooks(family)
    assert got.keys() == want.keys()
    for site, tensor in want.items():
        error = float((got[site] - tensor).abs().max() / tensor.abs().max())
        assert error < 5e-6, f"{site}: {backend} and hooks differ by {error:.2g} of its largest value"


def test_every_family_is_named_everywhere() -> None:
    assert {family.name for family in FAMILIES} == set(FAMILY_NAMES) == set(TINY_FAMILIES)
    assert {info.family for info in known_models() if info.kind == "random"} == set(FAMILY_NAMES)


@pytest.mark.parametrize("name", [info.name for info in known_models() if info.kind == "random"])
def test_every_tiny_model_is_of_its_family(name: str) -> None:
    info = next(info for info in known_models() if info.name == name)
    found = family_of(load_model(name)[0])
    assert found is not None
    assert found.name == info.family


@pytest.mark.real_model
def test_the_real_encoder_is_read_as_its_own_hidden_states_say() -> None:
    model, tokenizer = load_model("minilm-l6")
    texts = ["A man is eating food.", "Someone eats a meal."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**inputs, output_hidden_states=True).hidden_states
    with open_inspector("hooks", model, tokenizer) as lens:
        run = lens.run(texts, capture="blocks.*.resid_post")
        with pytest.raises(SiteError, match="an encoder by itself has no logits"):
            lens.run(texts, capture="logits")
    real = inputs["attention_mask"].bool()
    for layer in range(6):
        assert torch.allclose(run[f"blocks.{layer}.resid_post"][real], want[layer + 1][real], atol=1e-4)


# ---- what an odd model of a family lacks


def _odd(family: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(family, **{**TINY_FAMILIES[family], "vocab_size": 311, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("changes", "site", "says"),
    [
        ({"word_embed_proj_dim": 16}, "embed", "fewer units"),
        ({"do_layer_norm_before": False}, "final_norm", "no final norm"),
    ],
)
def test_what_an_odd_opt_lacks_is_said(changes: dict[str, Any], site: str, says: str) -> None:
    with open_inspector("hooks", _odd("opt", **changes)) as lens, pytest.raises(SiteError, match=says):
        lens.run(IDS, capture=site)


ODD = {
    "gpt_neox in series": ("gpt_neox", {"use_parallel_residual": False}),
    "opt that normalises after each sum": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt likewise, of one width": ("opt", {"do_layer_norm_before": False}),
    "opt without its last norm": ("opt", {"_remove_final_layer_norm": True}),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("backend", READERS)
def test_an_odd_layout_is_read_and_cut_as_it_is(backend: str, odd: str) -> None:
    name, changes = ODD[odd]
    model = _odd(name, **changes).double()
    other = IDS.flip(0)
    if backend == "penzai":
        with pytest.raises(UnsupportedError):
            open_inspector(backend, model)
        return
    with open_inspector(backend, model) as lens, torch.no_grad():
        family = lens.architecture.family
        assert family is not None
        run = lens.run(IDS, capture="blocks.1.*")
        states = model(IDS, output_hidden_states=True).hidden_states
        assert torch.allclose(run.logits, model(IDS).logits, atol=1e-6)
        assert torch.allclose(run["blocks.1.resid_pre"], states[1], atol=1e-6)
        assert torch.allclose(run["blocks.1.resid_post"], states[2], atol=1e-6)
        for before, term, after in (("resid_pre", "attn.out", "resid_mid"), ("resid_mid", "mlp.out", "resid_post")):
            total = run[f"blocks.1.{before}"] + run[f"blocks.1.{term}"]
            if path := family.norms.get(after):
                total = model.get_submodule(path.replace("{L}", "1"))(total)
            assert torch.allclose(total, run[f"blocks.1.{after}"], atol=1e-6), after
            there = lens.run(other, capture=f"blocks.1.{after}")[f"blocks.1.{after}"]
            patched = lens.run(IDS, edits=[replace(f"blocks.1.{after}", there)])
            assert torch.allclose(patched.logits, model(other).logits, atol=1e-6), f"{after} is no full cut"


def test_a_part_that_transformer_lens_takes_for_granted_is_named() -> None:
    model = _odd("opt", do_layer_norm_before=False)
    model.config.model_type = "opt of another kind"  # so that nothing is known of its layout
    with pytest.raises(UnsupportedError, match=r"would run model\.decoder\.final_layer_norm, which this OPT"):
        open_inspector("transformer_lens", model)


# ---- token types and positions


@pytest.mark.parametrize("backend", [name for name in READERS if load_backend(name).supports()["family.bert"]])
def test_token_types_reach_the_encoder(backend: str) -> None:
    model, _ = _model("bert")
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        want, without = (model(IDS, token_type_ids=t).logits for t in (types, torch.zeros_like(types)))
    assert not torch.allclose(want, without, atol=1e-2)
    with open_inspector(backend, model) as lens:
        found = lens.run({"input_ids": IDS, "token_type_ids": types}).logits
    assert torch.allclose(found, want, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "given", "says"),
    [
        (
            "bert",
            {"token_type_ids": torch.full((2, 6), 2)},
            "token_type_ids hold 2; for this model they go from 0 to 1",
        ),
        ("bert", {"token_type_ids": torch.zeros(2, 5, dtype=torch.long)}, r"the shape of input_ids, \(2, 6\)"),
        ("llama", {"token_type_ids": torch.ones(2, 6, dtype=torch.long)}, "they go from 0 to 0"),
        ("gpt2", {"position_ids": torch.full((2, 6), 1024)}, "position_ids hold 1024; .* from 0 to 1023"),
        ("llama", {"position_ids": torch.full((2, 6), -1)}, "position_ids hold -1; .* from 0 up"),
        ("llama", {"position_ids": torch.zeros(2, 6)}, "position_ids are .*float32"),
    ],
)
def test_numbers_that_a_model_has_not_are_refused(family: str, given: dict[str, torch.Tensor], says: str) -> None:
    with open_inspector("hooks", _model(family)[0]) as lens, pytest.raises(InputError, match=says):
        lens.run({"input_ids": IDS, **given})


def test_positions_of_the_caller_are_used_or_refused() -> None:
    model, _ = _model("gpt2")
    positions = torch.arange(6)[None] + 3
    with open_inspector("hooks", model) as lens, torch.no_grad():
        found = lens.run({"input_ids": IDS, "position_ids": positions}).logits
        assert torch.allclose(found, model(IDS, position_ids=positions).logits, atol=1e-10)
        zeros = {"input_ids": IDS, "token_type_ids": torch.zeros_like(IDS)}  # as a generic tokenizer gives them
        assert torch.allclose(lens.run(zeros).logits, model(IDS).logits, atol=1e-10)
        with pytest.raises(InputError, match="leave position_ids out"):
            lens.generate({"input_ids": IDS, "position_ids": positions}, max_new_tokens=2)
        same = lens.generate({"input_ids": IDS, "position_ids": torch.arange(6)[None]}, max_new_tokens=2)
        assert torch.equal(same.tokens, lens.generate(IDS, max_new_tokens=2).tokens)


def test_too_many_tokens_for_learned_positions_are_refused() -> None:
    for family in ("opt", "gpt2", "bert"):
        model, _ = _model(family)
        with open_inspector("hooks", model) as lens, pytest.raises(InputError, match="1024 learned positions"):
            lens.run(torch.full((1, 1025), 5))


def test_an_encoder_does_not_generate() -> None:
    with open_inspector("hooks", *_model("bert")) as lens, pytest.raises(InputError, match="causal language model"):
        lens.generate(IDS, max_new_tokens=1)


# ---- a family that is not known


def _strangers() -> Iterator[tuple[str, dict[str, Any]]]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 311}
    yield "stablelm", {**sizes, "num_key_value_heads": 2, "intermediate_size": 80}
    yield "olmo", {**sizes, "num_key_value_heads": 2, "intermediate_size": 80}
    yield "starcoder2", {**sizes, "num_key_value_heads": 2, "intermediate_size": 80}


def _stranger(kind: str, sizes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).double().eval()


@pytest.mark.parametrize(("kind", "sizes"), list(_strangers()))
def test_a_draft_of_a_family_works_when_it_is_given(kind: str, sizes: dict[str, Any]) -> None:
    model = _stranger(kind, sizes)
    assert describe(model).family is None
    scope: dict[str, Any] = {}
    exec(draft_family(model), scope)
    with open_inspector("hooks", model, family=scope["family"]) as lens:
        run = lens.run(IDS, capture=["blocks.*.resid_*", "blocks.1.attn.out", "blocks.1.mlp.out", "final_norm"])
        want = model(IDS, output_hidden_states=True)
        for layer in range(2):
            assert torch.allclose(run[f"blocks.{layer}.resid_post"], want.hidden_states[layer + 1], atol=1e-10)
        assert torch.allclose(run["final_norm"], want.hidden_states[-1], atol=1e-10)
        total = run["blocks.1.resid_pre"] + run["blocks.1.attn.out"] + run["blocks.1.mlp.out"]
        assert torch.allclose(total, run["blocks.1.resid_post"], atol=1e-10)
        edited = lens.run(IDS, edits=[zero("blocks.1.attn.z", heads=[2])])
        projection = model.get_submodule(scope["family"].blocks["attn.z"].module.replace("{L}", "1"))
        with torch.no_grad():
            projection.weight[:, 16:24] = 0
        assert torch.allclose(edited.logits, model(IDS).logits, atol=1e-10)


def _drafted() -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """(model_type, sizes, how each finding begins)"""
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 311}
    like_llama = {**sizes, "num_key_value_heads": 2, "intermediate_size": 80}
    for kind, given in _strangers():
        yield kind, given, []
    yield "olmo2", like_llama, []
    yield (
        "gemma3_text",
        {**like_llama, "head_dim": 10},
        [
            "blocks.1.attn.q: has shape (3, 4, 7, 10), must be (3, 7, 4, 10); layout 'head first'",
            "blocks.1.attn.k: has shape (3, 2, 7, 10), must be (3, 7, 2, 10); layout 'head first'",
        ],
    )
    yield (
        "granite",
        {**like_llama, "residual_multiplier": 0.5},
        [
            "blocks.1.resid_mid: is not blocks.1.resid_pre + blocks.1.attn.out",
            "blocks.1.resid_post: is not blocks.1.resid_mid + blocks.1.mlp.out",
        ],
    )


@pytest.mark.parametrize(("kind", "sizes", "findings"), list(_drafted()))
def test_a_draft_is_right_or_the_check_says_where_it_is_not(
    kind: str, sizes: dict[str, Any], findings: list[str]
) -> None:
    model = _stranger(kind, sizes)
    scope: dict[str, Any] = {}
    exec(draft_family(model), scope)
    found = check_family(model, scope["family"])
    assert len(found) == len(findings), found
    for text, start in zip(found, findings, strict=True):
        assert text.startswith(start), text


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "bert"])
def test_a_draft_of_a_known_family_is_what_is_known_of_it(name: str) -> None:
    model, _ = _model(name)
    known, scope = family_of(model), {}
    exec(draft_family(model), scope)
    family: Family = scope["family"]
    assert known is not None
    assert (family.blocks, family.norms, family.causal) == (known.blocks, known.norms, known.causal)


# ---- the check of a family


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_nothing_is_found_in_a_known_family(name: str) -> None:
    for dtype in (torch.float64, torch.float32):
        model, _ = tiny_model(name, dtype=dtype)
        family = family_of(model)
        assert family is not None
        assert check_family(model, family) == []


_ATTN = "model.layers.{L}.self_attn"


@pytest.mark.parametrize(
    ("name", "site", "address", "says"),
    [
        ("qwen3", "attn.q", Address(f"{_ATTN}.q_proj", "output", "h d"), "no multiple of their product"),
        ("llama", "attn.v", Address(f"{_ATTN}.k_proj", "output", "h d"), "is not the pattern times"),
        ("llama", "attn.k", Address(f"{_ATTN}.v_proj", "output", "h d"), "no multiple of their product"),
        ("llama", "attn.q", Address(f"{_ATTN}.k_proj", "output", "h d"), "blocks.1.attn.q: has shape"),
        ("gemma2", "attn.out", Address(_ATTN, "output"), r"resid_mid: is not blocks.1.resid_pre \+ blocks.1.attn.out"),
        ("gemma2", "mlp.out", Address("model.layers.{L}.mlp", "output"), "resid_post: is not"),
        ("gemma2", "logits", Address("lm_head", "output"), "logits: are not what the model returns"),
        ("llama", "resid_mid", Address("model.layers.{L}.post_attention_layernorm", "input"), "not all that is read"),
        ("llama", "resid_pre", Address("model.layers.{L}.input_layernorm", "output"), "is not the hidden state"),
        ("llama", "final_norm", Address("model.layers.2", "output"), "final_norm: the unembedding does not make"),
        ("llama", "attn.out", Address("model.layers.{L}.mlp", "softmax"), "attn.out: cannot be read"),
        ("opt", "resid_mid", Address("model.decoder.layers.{L}.final_layer_norm", "input"), "resid_mid: has shape"),
    ],
)
def test_a_wrong_address_is_found(name: str, site: str, address: Address, says: str) -> None:
    model, _ = _model(name)
    family = family_of(model)
    assert family is not None
    if site in family.globals:
        wrong = changed(family, globals={**family.globals, site: address})
    else:
        wrong = changed(family, blocks={**family.blocks, site: address})
    assert any(re.search(says, finding) for finding in check_family(model, wrong)), check_family(model, wrong)


def test_other_wrong_claims_are_found() -> None:
    bert, _ = _model("bert")
    family = family_of(bert)
    assert family is not None
    assert any("causal=True" in finding for finding in check_family(bert, changed(family, causal=True)))
    found = check_family(bert, changed(family, norms={}))
    assert [finding.partition(":")[0] for finding in found] == ["blocks.1.resid_mid", "blocks.1.resid_post"]


def test_a_site_without_an_address_does_not_exist() -> None:
    model, _ = _model("llama")
    family = family_of(model)
    assert family is not None
    blocks = {name: address for name, address in family.blocks.items() if name not in ("mlp.post", "attn.q")}
    less = changed(family, name="mine", blocks=blocks, globals={"embed": family.globals["embed"]})
    with open_inspector("hooks", model, family=less) as lens:
        assert "blocks.0.resid_mid" in lens.run(IDS, capture="blocks.*")
        for site in ("blocks.0.mlp.post", "logits"):
            with pytest.raises(SiteError, match="family 'mine' gives no address for it"):
                lens.run(IDS, capture=site)
    assert check_family(model, less) == []
    with pytest.raises(InputError, match="whose config has no hidden_size"):
        open_inspector("hooks", torch.nn.Linear(2, 2), family=family)
    blocks = {**family.blocks, "mlp.post": Address("model.layers.{L}.mlp", "input")}
    with pytest.raises(InputError, match="a LlamaMLP without a weight"):
        open_inspector("hooks", model, family=changed(family, blocks=blocks))
    with pytest.raises(UnsupportedError, match="is the caller's own"):
        open_inspector("transformer_lens", model, family=less)


def test_an_unknown_model_is_told_how_to_get_names() -> None:
    model = _stranger(*next(_strangers()))
    with open_inspector("hooks", model) as lens:
        run = lens.run({"input_ids": IDS}, capture="module:model.layers.1:output")
        assert run["module:model.layers.1:output"].shape == (2, 6, 32)
        with pytest.raises(SiteError, match=r"draft_family\(model\)"):
            lens.run({"input_ids": IDS}, capture="blocks.1.resid_post")


def test_what_a_draft_could_not_find_is_named() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", hidden_size=32, n_layer=2, n_head=4))
    text = draft_family(model)
    assert "# not found:" in text
    assert "blocks.L.attn.q" in text
    assert "self_attention.query_key_value (Linear)" in text, "what there is instead"
    with pytest.raises(InputError, match="no list of blocks"):
        draft_family(torch.nn.Linear(2, 2))


def test_a_family_that_does_not_fit_is_refused() -> None:
    model = _stranger(*next(_strangers()))
    wrong = Family(
        name="mine", model_types=("mine",), parts=(), globals={"embed": Address("nowhere", "output")}, blocks={}
    )
    with pytest.raises(InputError, match="'nowhere', which StableLmForCausalLM has not"):
        open_inspector("hooks", model, family=wrong)
