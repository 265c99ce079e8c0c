"""A first draft of a `Family` for a model that crosslens does not know, from the names and shapes of its modules.

print(draft_family(model))          # Python text: addresses that were found, and what is still missing
check_family(model, family)         # what of it does not hold on this model
open_inspector("hooks", model, family=family)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace as changed
from typing import Any

from torch import nn

from .errors import InputError
from .families import FAMILIES, Address, Family, Layout, Side
from .sites import BLOCK_AXES, GLOBAL_AXES

# How the parts are called in the models of `transformers`; the first that a block has is taken.
_ATTENTION = r"(self_)?(attn|attention)"
_MLP = r"mlp|feed_forward|ffn|ff"
_PROJECTIONS: Mapping[str, tuple[str, Side, Layout]] = {  # site -> (names of the module, side, layout)
    "attn.q": (r"q_proj|query|wq|q_lin|to_q", "output", "h d"),
    "attn.k": (r"k_proj|key|wk|k_lin|to_k", "output", "h d"),
    "attn.v": (r"v_proj|value|wv|v_lin|to_v", "output", "h d"),
    "attn.z": (r"o_proj|out_proj|dense|c_proj|wo|out_lin", "input", "h d"),
}
_DOWN = r"down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2|lin2|wo"
_SECOND_NORM = r"post_attention_layernorm|ln_2|final_layer_norm|norm2|ffn_norm|pre_feedforward_layernorm"
_LAST_NORM = r"norm|ln_f|final_layer_norm|final_norm|ln_final"


def draft_family(model: nn.Module) -> str:
    """Python text of a `Family` for this model: what could be guessed, and comments on what is missing.

    It goes by names, so it may be wrong: `family_check.check_family(model, family)` says where, before you trust it.

    Raises:
        InputError: no list of blocks was found, as in a model that is no transformer.
    """
    modules = dict(model.named_modules())
    blocks = _blocks(modules)
    block = f"{blocks}.{{L}}"
    first = modules[f"{blocks}.0"]
    outside, (inside, norms) = _outside(model, modules, blocks), _inside(first, block)
    lacking = [name for name in GLOBAL_AXES if name not in outside]
    lacking += [f"blocks.L.{name}" for name in BLOCK_AXES if name not in inside]
    kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__.lower()
    paths = (blocks, outside["logits"].module) if "logits" in outside else (blocks,)
    roots = tuple(dict.fromkeys(path.partition(".")[0] for path in paths))
    lines = [
        "from crosslens.adapters import Address, Family",
        "",
        f"family = Family(  # a draft, by the names of the modules of {type(model).__name__}",
        f"    name={kind!r},",
        f"    model_types=({kind!r},),",
        f"    parts={roots!r},",
        "    globals={",
        *(f"        {name!r}: {_shown(address)}," for name, address in outside.items()),
        "    },",
        "    blocks={",
        *(f"        {name!r}: {_shown(address)}," for name, address in inside.items()),
        "    },",
        *([f"    norms={norms!r},", "    causal=False,"] if norms else []),
        ")",
    ]
    children = ", ".join(f"{name} ({type(child).__name__})" for name, child in first.named_modules() if name)
    if lacking:
        lines += [f"# not found: {', '.join(lacking)}", f"# a block has: {children}"]
    return "\n".join(lines)


def _blocks(modules: Mapping[str, nn.Module]) -> str:
    """Path of the longest list of modules of one class."""
    lists = {
        path: len(module)
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList | nn.Sequential) and path and len({type(child) for child in module}) == 1
    }
    if not lists:
        raise InputError(
            "this model has no list of blocks of one class, so it has no canonical sites; use module:NAME:output and "
            "module:NAME:input, which any model has"
        )
    return max(lists, key=lambda path: (lists[path], -path.count(".")))


def _outside(model: Any, modules: Mapping[str, nn.Module], blocks: str) -> dict[str, Address]:
    found: dict[str, Address] = {}
    base = blocks.rpartition(".")[0]
    embeddings = _path_of(model, "get_input_embeddings", modules)
    if embeddings:
        found["embed"] = Address(embeddings, "output")
    beside = {path.rpartition(".")[2]: path for path in modules if path and path.rpartition(".")[0] == base}
    norm = _named(_LAST_NORM, beside)
    if norm:
        found["final_norm"] = Address(beside[norm], "output")
    if head := _path_of(model, "get_output_embeddings", modules):
        found["logits"] = Address(head, "output")
    return found


def _path_of(model: Any, getter: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Path of the module that a model of `transformers` names itself."""
    found = getattr(model, getter)() if hasattr(model, getter) else None
    return next((path for path, module in modules.items() if module is found), None)


def _inside(first: nn.Module, block: str) -> tuple[dict[str, Address], dict[str, str]]:
    """Addresses of the sites of a block, in order of execution, and the norms that sums pass."""
    bert = next(family for family in FAMILIES if family.name == "bert")  # whose names other encoders have taken over
    return _transplanted(bert, dict(first.named_modules()), block) or _plain(dict(first.named_children()), block)


def _transplanted(
    family: Family, parts: Mapping[str, nn.Module], block: str
) -> tuple[dict[str, Address], dict[str, str]] | None:
    """What a known family has, if this block has a module at each of its addresses."""
    start = family.blocks["resid_pre"].module
    below = {name: address.module.removeprefix(start).removeprefix(".") for name, address in family.blocks.items()}
    if not all(path in parts for path in below.values()):
        return None
    found = {name: changed(family.blocks[name], module=f"{block}.{path}".rstrip(".")) for name, path in below.items()}
    return found, {site: block + norm.removeprefix(start) for site, norm in family.norms.items()}


def _plain(children: Mapping[str, nn.Module], block: str) -> tuple[dict[str, Address], dict[str, str]]:
    found: dict[str, Address] = {"resid_pre": Address(block, "input"), "resid_post": Address(block, "output")}
    attention = _named(_ATTENTION, children)
    if attention:
        found.update(_of_attention(children[attention], f"{block}.{attention}"))
    mlp = _named(_MLP, children)
    if mlp:
        path = _last_named(_DOWN, dict(children[mlp].named_modules()))
        found["mlp.out"] = Address(f"{block}.{mlp}", "output")
        if path:
            found["mlp.post"] = Address(f"{block}.{mlp}.{path}", "input")
    norm = _named(_SECOND_NORM, children)
    if norm:
        found["resid_mid"] = Address(f"{block}.{norm}", "input", shared=True)
    if "post_feedforward_layernorm" in children:  # what is added has passed a norm of its own
        before_mlp = "pre_feedforward_layernorm" if "pre_feedforward_layernorm" in children else mlp
        found["attn.out"] = Address(f"{block}.post_attention_layernorm", "output")
        found["resid_mid"] = Address(f"{block}.{before_mlp}", "input", shared=True)
        found["mlp.out"] = Address(f"{block}.post_feedforward_layernorm", "output")
    return {name: found[name] for name in BLOCK_AXES if name in found}, {}


def _of_attention(attention: Any, path: str) -> dict[str, Address]:
    found = {"attn.pattern": Address(path, "softmax"), "attn.out": Address(path, "output")}
    parts = dict(attention.named_modules())
    for site, (names, side, layout) in _PROJECTIONS.items():
        last = _last_named(names, parts)
        if not last:
            continue
        found[site] = Address(f"{path}.{last}", side, layout)
        norm, projection = parts.get(f"{site[-1]}_norm"), parts[last]
        if norm is not None and hasattr(norm, "weight"):  # what enters the rotation has passed it: whole, or by head
            whole = norm.weight.numel() == getattr(projection, "out_features", 0)
            found[site] = Address(f"{path}.{site[-1]}_norm", "output", layout if whole else "")
    return found


def _named(names: str, candidates: Iterable[str]) -> str | None:
    return next((name for name in candidates if re.fullmatch(names, name)), None)


def _last_named(names: str, parts: Mapping[str, nn.Module]) -> str | None:
    """The path, below a module, whose last name is one of these."""
    return next((path for path in parts if path and re.fullmatch(names, path.rpartition(".")[2])), None)


def _shown(address: Address) -> str:
    parts = [repr(address.module), repr(address.side)]
    if address.layout:
        parts.append(repr(address.layout))
    if address.shared:
        parts.append("shared=True")
    return f"Address({', '.join(parts)})"
