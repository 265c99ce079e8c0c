"""Where each canonical site lives in each model family: data, in one place.

To add a family, add one `Family` to `FAMILIES`: the `model_type` of its config, the path of its blocks, and an
`Address` for every site that it has. `tests/` walks every family against the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from .errors import SiteError
from .sites import BLOCK_AXES, GLOBAL_AXES, Site, SiteTable, canonical_sites

Side = Literal["input", "output", "softmax"]


@dataclass(frozen=True)
class Address:
    """Where a tensor passes through a PyTorch module, and how the site's tensor lies in it.

    Args:
        module: dotted path; `{L}` stands for the block number. Block paths are relative to the base model.
        side: the module's `input` (its first tensor argument) or `output` (the tensor, or the first of a tuple), or
            `softmax`: what the softmax inside an eager attention module returns.
        layout: how the last axis of the module's tensor holds the site: "" as it is, "h d" heads by head size,
            "part h d" and "h part d" for fused projections, of which `part` picks one of three.
        part: which of the three parts of a fused projection: 0 q, 1 k, 2 v.
        shared: the same tensor object also continues on another path (the residual), so an edit must be made in
            place to reach both.
    """

    module: str
    side: Side
    layout: Literal["", "h d", "part h d", "h part d"] = ""
    part: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: the oracle's and the tables' name for it.
        model_types: `config.model_type` values that belong to it.
        base: attribute of the language model that holds the base model.
        globals: address of each site outside the blocks, relative to the language model.
        blocks: address of each site in a block, relative to the language model.
        absent: config -> {site without its block: why this model lacks it}.
    """

    name: str
    model_types: tuple[str, ...]
    base: str
    globals: Mapping[str, Address]
    blocks: Mapping[str, Address]
    absent: Callable[[Any], dict[str, str]] = field(default=lambda config: {})


def _llama(name: str, *model_types: str) -> Family:
    block = "model.layers.{L}"
    attn = f"{block}.self_attn"
    return Family(
        name=name,
        model_types=model_types,
        base="model",
        globals={
            "embed": Address("model.embed_tokens", "output"),
            "final_norm": Address("model.norm", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.q_proj", "output", "h d"),
            "attn.k": Address(f"{attn}.k_proj", "output", "h d"),
            "attn.v": Address(f"{attn}.v_proj", "output", "h d"),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.o_proj", "input", "h d"),
            "attn.out": Address(attn, "output"),
            "resid_mid": Address(f"{block}.post_attention_layernorm", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.down_proj", "input"),
            "mlp.out": Address(f"{block}.mlp", "output"),
            "resid_post": Address(block, "output"),
        },
    )


def _gpt2() -> Family:
    block = "transformer.h.{L}"
    attn = f"{block}.attn"
    return Family(
        name="gpt2",
        model_types=("gpt2",),
        base="transformer",
        globals={
            "embed": Address("transformer.wte", "output"),
            "final_norm": Address("transformer.ln_f", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.c_attn", "output", "part h d", 0),
            "attn.k": Address(f"{attn}.c_attn", "output", "part h d", 1),
            "attn.v": Address(f"{attn}.c_attn", "output", "part h d", 2),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.c_proj", "input", "h d"),
            "attn.out": Address(attn, "output"),
            "resid_mid": Address(f"{block}.ln_2", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.c_proj", "input"),
            "mlp.out": Address(f"{block}.mlp", "output"),
            "resid_post": Address(block, "output"),
        },
    )


def _gpt_neox_absent(config: Any) -> dict[str, str]:
    if not getattr(config, "use_parallel_residual", True):
        return {}
    return {
        "resid_mid": (
            "gpt_neox runs attention and MLP in parallel from resid_pre (use_parallel_residual), so no residual "
            "stream exists between them; use resid_pre, attn.out or resid_post"
        )
    }


def _gpt_neox() -> Family:
    block = "gpt_neox.layers.{L}"
    attn = f"{block}.attention"
    return Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        base="gpt_neox",
        globals={
            "embed": Address("gpt_neox.embed_in", "output"),
            "final_norm": Address("gpt_neox.final_layer_norm", "output"),
            "logits": Address("lm_head", "output"),
        },
        blocks={
            "resid_pre": Address(block, "input"),
            "attn.q": Address(f"{attn}.query_key_value", "output", "h part d", 0),
            "attn.k": Address(f"{attn}.query_key_value", "output", "h part d", 1),
            "attn.v": Address(f"{attn}.query_key_value", "output", "h part d", 2),
            "attn.pattern": Address(attn, "softmax"),
            "attn.z": Address(f"{attn}.dense", "input", "h d"),
            "attn.out": Address(f"{block}.post_attention_dropout", "output"),
            "resid_mid": Address(f"{block}.post_attention_layernorm", "input", shared=True),
            "mlp.post": Address(f"{block}.mlp.dense_4h_to_h", "input"),
            "mlp.out": Address(f"{block}.post_mlp_dropout", "output"),
            "resid_post": Address(block, "output"),
        },
        absent=_gpt_neox_absent,
    )


FAMILIES: tuple[Family, ...] = (_llama("llama", "llama"), _gpt2(), _gpt_neox())


@dataclass(frozen=True)
class Architecture:
    """What crosslens knows about one model.

    Attributes:
        family: its family, or None where it is not known.
        sites: all its sites.
        sizes: `n_layers`, and the sizes of axes: d_model, head, kv_head, d_head, d_mlp, d_vocab.
    """

    family: Family | None
    sites: SiteTable
    sizes: Mapping[str, int]

    def address(self, site: Site) -> Address:
        """Where a canonical site lives, with its block number filled in."""
        if self.family is None or site.kind != "canonical":
            raise SiteError(f"site {site.name!r} has no address in a known family")
        if site.layer is None:
            return self.family.globals[site.name]
        address = self.family.blocks[site.local]
        path = address.module.replace("{L}", str(site.layer))
        return Address(path, address.side, address.layout, address.part, address.shared)


def describe(model: nn.Module) -> Architecture:
    """The architecture of any module: canonical sites if its family is known, `module:` sites always."""
    modules = [name for name, _ in model.named_modules()]
    family = family_of(model)
    if family is None:
        return Architecture(None, SiteTable([], modules, unknown_family=_how_to_add(model)), {})
    config = model.config
    sizes = _sizes(model, family)
    absent = family.absent(config)
    canonical = canonical_sites(sizes["n_layers"], sizes, absent)
    table = SiteTable(canonical, modules, absent, sizes["n_layers"])
    return Architecture(family, table, sizes)


def family_of(model: nn.Module) -> Family | None:
    """The known family of a language model, or None."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if model_type in family.model_types and hasattr(model, family.base) and hasattr(model, "lm_head"):
            return family
    return None


def _sizes(model: nn.Module, family: Family) -> dict[str, int]:
    config: Any = model.config
    d_model, heads = config.hidden_size, config.num_attention_heads
    last = family.blocks["mlp.post"].module.replace("{L}", "0")
    down: Any = model.get_submodule(last)
    head: Any = model.get_submodule("lm_head")
    # Conv1D keeps (in, out), Linear (out, in): the neurons are the input of the down projection
    d_mlp = down.in_features if isinstance(down, nn.Linear) else down.weight.shape[0]
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": d_model,
        "head": heads,
        "kv_head": getattr(config, "num_key_value_heads", None) or heads,
        "d_head": getattr(config, "head_dim", None) or d_model // heads,
        "d_mlp": d_mlp,
        "d_vocab": head.weight.shape[0],
    }


def _how_to_add(model: nn.Module) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    known = ", ".join(family.name for family in FAMILIES)
    names = ", ".join([*GLOBAL_AXES, *(f"blocks.L.{n}" for n in BLOCK_AXES)])
    return (
        f"{kind!r} is no language model of a known family ({known}), so it has only module: sites "
        "(module:NAME:output, module:NAME:input; list them with lens.sites()). To give it canonical names, add a "
        f"Family with its addresses to crosslens.adapters.architectures: {names}"
    )
