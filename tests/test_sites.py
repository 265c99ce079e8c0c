"""Names, globs, shapes and the errors that name what would be right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from crosslens.adapters import SiteError, open_inspector
from crosslens.adapters.architectures import describe
from crosslens.adapters.conformance.models import tiny_model
from crosslens.adapters.sites import Site, SiteTable


@pytest.fixture(scope="module")
def table() -> SiteTable:
    return describe(tiny_model("llama")[0]).sites


def names(sites: list[Site]) -> list[str]:
    return [site.name for site in sites]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embed", ["embed"]),
        ("blocks.*.attn.z", [f"blocks.{layer}.attn.z" for layer in range(3)]),
        ("blocks.{0,2}.mlp.out", ["blocks.0.mlp.out", "blocks.2.mlp.out"]),
        ("blocks.1.resid_{pre,post}", ["blocks.1.resid_pre", "blocks.1.resid_post"]),
        ("blocks.?.attn.q", [f"blocks.{layer}.attn.q" for layer in range(3)]),
        ("module:model.layers.*.mlp:output", [f"module:model.layers.{layer}.mlp:output" for layer in range(3)]),
        ("module:model.layers.0:output[0]#2", ["module:model.layers.0:output[0]#2"]),
        ("native:any.thing at all", ["native:any.thing at all"]),
    ],
)
def test_patterns_select(table: SiteTable, pattern: str, expected: list[str]) -> None:
    assert names(table.resolve(pattern)) == expected


def test_sites_come_in_the_order_asked_for_and_once(table: SiteTable) -> None:
    assert names(table.resolve(["logits", "embed", "logits"])) == ["logits", "embed"]


def test_every_site_has_its_axes_and_sizes(table: SiteTable) -> None:
    (site,) = table.resolve("blocks.2.attn.k")
    assert site.axes == ("batch", "pos", "kv_head", "d_head")
    assert site.sizes == {"kv_head": 2, "d_head": 8}
    assert (site.layer, site.local) == (2, "attn.k")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_stated_shapes_are_the_captured_shapes(family: str) -> None:
    model, tokenizer = tiny_model(family)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with open_inspector("hooks", model, tokenizer) as lens:
        canonical = [site for site in lens.sites() if site.kind == "canonical"]
        run = lens.run(ids, capture=canonical)
    known = {"batch": 2, "pos": 3, "query": 3, "key": 3}
    for site in canonical:
        assert tuple(run[site.name].shape) == tuple((known | dict(site.sizes))[axis] for axis in site.axes), site.name
    assert [site.order for site in canonical] == sorted(site.order for site in canonical)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.1.resid_pots", ["blocks.1.resid_pots", "'blocks.1.resid_post'"]),
        ("blocks.7.attn.z", ["layer 7 is out of range", "3 layers", "blocks.2"]),
        ("blocks.-1.attn.z", ["layer -1", "the last is blocks.2.attn.z"]),
        ("blocks.*.attn.zz", ["pattern 'blocks.*.attn.zz' matches nothing"]),
        ("module:model.layer.0:output", ["no submodule 'model.layer.0'", "model.layers.0"]),
        ("module:model.layers.0", ["does not parse", "module:NAME:output"]),
        ("module:model.layers.0:outputs", ["does not parse"]),
        ("module:*.nope:output", ["matches no module"]),
        ("native:", ["native:ADDRESS"]),
        ("", ["matches nothing"]),
    ],
)
def test_errors_say_what_would_be_right(table: SiteTable, name: str, says: list[str]) -> None:
    with pytest.raises(SiteError) as caught:
        table.resolve(name)
    for text in says:
        assert text in str(caught.value)


def test_parallel_blocks_say_why_they_have_no_resid_mid() -> None:
    sites = describe(tiny_model("gpt_neox")[0]).sites
    with pytest.raises(SiteError, match=r"parallel.*resid_pre"):
        sites.resolve("blocks.0.resid_mid")


def test_an_unknown_family_keeps_its_modules_and_says_how_to_add_one() -> None:
    sites = describe(nn.Sequential(nn.Linear(2, 2))).sites
    assert names(sites.resolve("module:0:output")) == ["module:0:output"]
    with pytest.raises(SiteError, match=r"draft_family\(model\)"):
        sites.resolve("embed")


@given(st.text(alphabet="blocks.0123*{}?,:#[]-module:native:attnz resid_post", max_size=40))
def test_any_text_is_resolved_or_refused(text: str) -> None:
    """Whatever a user types, the answer is sites or a SiteError; nothing else, and never an empty list."""
    table = describe(nn.Sequential(nn.Linear(2, 2))).sites
    try:
        found = table.resolve(text)
    except SiteError:
        return
    assert found
