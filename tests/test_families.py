"""Model families: all backends agree on each, and one that is not known can be given by the caller."""

from __future__ import annotations

from collections.abc import Iterator
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
    draft_family,
    load_backend,
    open_inspector,
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
        ({"do_layer_norm_before": False}, "blocks.0.resid_mid", "normalises after each sum"),
        ({"word_embed_proj_dim": 16}, "embed", "fewer units"),
        ({"do_layer_norm_before": False}, "final_norm", "no final norm"),
    ],
)
def test_what_an_odd_opt_lacks_is_said(changes: dict[str, Any], site: str, says: str) -> None:
    with open_inspector("hooks", _odd("opt", **changes)) as lens, pytest.raises(SiteError, match=says):
        lens.run(IDS, capture=site)


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
