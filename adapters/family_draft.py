"""A first draft of a `Family` for a model that crosslens does not know, from the names and shapes of its modules.

print(draft_family(model))          # Python text: addresses that were found, and what is still missing
open_inspector("hooks", model, family=Family(...))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .errors import InputError
from .families import Address
from .sites import BLOCK_AXES, GLOBAL_AXES

# How the parts are called in the models of `transformers`; the first that a block has is taken.
_ATTENTION = r"(self_)?(attn|attention)"
_MLP = r"mlp|feed_forward|ffn|ff"
_PROJECTIONS: Mapping[str, tuple[str, str, str]] = {  # site -> (names of the module, side, layout)
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

    It is a draft: run `crosslens.adapters.conformance.coverage` on a tiny model of the family, or compare captures with
    the model's own hidden states, before you trust it.

    Raises:
        InputError: no list of blocks was found, as in a model that is no transformer.
    """
    modules = dict(model.named_modules())
    blocks = _blocks(modules)
    block = f"{blocks}.{{L}}"
    first = modules[f"{blocks}.0"]
    outside, inside = _outside(model, modules, blocks), _inside(first, block)
    lacking = [name for name in GLOBAL_AXES if name not in outside]
    lacking += [f"blocks.L.{name}" for name in BLOCK_AXES if name not in inside]
    kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__.lower()
    roots = list(
        dict.fromkeys(path.partition(".")[0] for path in (blocks, outside.get("logits", Address("", "output")).module))
    )
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
    embeddings = [path for path, module in modules.items() if isinstance(module, nn.Embedding)]
    if embeddings:
        found["embed"] = Address(max(embeddings, key=lambda path: _size(modules[path])), "output")
    beside = {path.rpartition(".")[2]: path for path in modules if path and path.rpartition(".")[0] == base}
    norm = _named(_LAST_NORM, beside)
    if norm:
        found["final_norm"] = Address(beside[norm], "output")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    named = next((path for path, module in modules.items() if head is not None and module is head), None)
    if named:
        found["logits"] = Address(named, "output")
    return found


def _inside(first: nn.Module, block: str) -> dict[str, Address]:
    """Addresses of the sites of a block, in order of execution."""
    children = dict(first.named_children())
    found: dict[str, Address] = {"resid_pre": Address(block, "input"), "resid_post": Address(block, "output")}
    attention = _named(_ATTENTION, children)
    if attention:
        parts = dict(children[attention].named_modules())
        found["attn.pattern"] = Address(f"{block}.{attention}", "softmax")
        found["attn.out"] = Address(f"{block}.{attention}", "output")
        for site, (names, side, layout) in _PROJECTIONS.items():
            path = _last_named(names, parts)
            if path:
                found[site] = Address(f"{block}.{attention}.{path}", side, layout)  # type: ignore[arg-type]
    mlp = _named(_MLP, children)
    if mlp:
        path = _last_named(_DOWN, dict(children[mlp].named_modules()))
        found["mlp.out"] = Address(f"{block}.{mlp}", "output")
        if path:
            found["mlp.post"] = Address(f"{block}.{mlp}.{path}", "input")
    norm = _named(_SECOND_NORM, children)
    if norm:
        found["resid_mid"] = Address(f"{block}.{norm}", "input", shared=True)
    return {name: found[name] for name in BLOCK_AXES if name in found}


def _named(names: str, candidates: Iterable[str]) -> str | None:
    return next((name for name in candidates if re.fullmatch(names, name)), None)


def _last_named(names: str, parts: Mapping[str, nn.Module]) -> str | None:
    """The path, below a module, whose last name is one of these."""
    return next((path for path in parts if path and re.fullmatch(names, path.rpartition(".")[2])), None)


def _size(module: Any) -> int:
    return int(module.weight.shape[0])


def _shown(address: Address) -> str:
    parts = [repr(address.module), repr(address.side)]
    if address.layout:
        parts.append(repr(address.layout))
    if address.shared:
        parts.append("shared=True")
    return f"Address({', '.join(parts)})"
