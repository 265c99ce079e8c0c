"""What crosslens knows about one model: its family, its sites, its sizes, and where each site lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

from torch import Tensor, nn

from .errors import InputError, SiteError
from .families import FAMILIES, Address, Family
from .sites import BLOCK_AXES, GLOBAL_AXES, Site, SiteTable, canonical_sites

_NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


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
        return changed(address, module=address.module.replace("{L}", str(site.layer)))


def describe(model: nn.Module, family: Family | None = None) -> Architecture:
    """The architecture of any module: canonical sites if its family is known, `module:` sites always.

    Args:
        model: any module.
        family: the caller's own, for a model of none that crosslens knows.

    Raises:
        InputError: `family` names a module that this model has not.
    """
    modules = [name for name, _ in model.named_modules()]
    if family is None:
        family = family_of(model)
    else:
        _check_fits(family, model, set(modules))
    if family is None:
        return Architecture(None, SiteTable([], modules, unknown_family=_how_to_add(model)), {})
    sizes = _sizes(model, family)
    absent = {**_unaddressed(family), **family.absent(model.config)}
    canonical = canonical_sites(sizes["n_layers"], sizes, absent)
    table = SiteTable(canonical, modules, absent, sizes["n_layers"])
    return Architecture(family, table, sizes)


def family_of(model: nn.Module) -> Family | None:
    """The known family of a language model or encoder, or None."""
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    for family in FAMILIES:
        named = model_type in family.model_types and all(hasattr(model, part) for part in family.parts)
        if named and family.fits(config):
            return family
    return None


def _unaddressed(family: Family) -> dict[str, str]:
    """Sites that the family gives no address, and what to say of them."""
    names = [name for name in GLOBAL_AXES if name not in family.globals]
    names += [name for name in BLOCK_AXES if name not in family.blocks]
    return dict.fromkeys(names, f"family {family.name!r} gives no address for it")


def _check_fits(family: Family, model: nn.Module, modules: set[str]) -> None:
    config = getattr(model, "config", None)
    if lacking := [name for name in _NEEDED if getattr(config, name, None) is None]:
        raise InputError(
            f"family {family.name!r} cannot be used with a {type(model).__name__}, whose config has no "
            f"{', '.join(lacking)}; canonical sites need their sizes. module: sites need nothing"
        )
    for site, address in {**family.globals, **{f"blocks.0.{s}": a for s, a in family.blocks.items()}}.items():
        path = address.module.replace("{L}", "0")
        if path not in modules:
            raise InputError(
                f"family {family.name!r} has {site!r} at {path!r}, which {type(model).__name__} has not; "
                "draft_family(model) proposes addresses"
            )


def _sizes(model: nn.Module, family: Family) -> dict[str, int]:
    config: Any = model.config
    d_model, heads = config.hidden_size, config.num_attention_heads
    sizes = {
        "n_layers": config.num_hidden_layers,
        "d_model": d_model,
        "head": heads,
        "kv_head": getattr(config, "num_key_value_heads", None) or heads,
        "d_head": getattr(config, "head_dim", None) or d_model // heads,
        "d_vocab": config.vocab_size,
    }
    if "embed" in family.globals:
        sizes["d_vocab"] = _weight(model, family, "embed", family.globals["embed"].module).shape[0]
    if "mlp.post" in family.blocks:  # the neurons are the input of the down projection
        path = family.blocks["mlp.post"].module.replace("{L}", "0")
        weight = _weight(model, family, "mlp.post", path)  # Conv1D keeps (in, out), Linear (out, in)
        sizes["d_mlp"] = weight.shape[-1 if isinstance(model.get_submodule(path), nn.Linear) else 0]
    return sizes


def _weight(model: nn.Module, family: Family, site: str, path: str) -> Tensor:
    weight = getattr(model.get_submodule(path), "weight", None)
    if not isinstance(weight, Tensor):
        raise InputError(
            f"family {family.name!r} has {site!r} at {path!r}, a {type(model.get_submodule(path)).__name__} without "
            "a weight to tell its size by; it must be the embedding, or the down projection"
        )
    return weight


def _how_to_add(model: nn.Module) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    names = ", ".join([*GLOBAL_AXES, *(f"blocks.L.{n}" for n in BLOCK_AXES)])
    return (
        f"{kind!r} is no language model of a known family ({known}), so it has only module: sites "
        "(module:NAME:output, module:NAME:input; list them with lens.sites()). To give it canonical names, open the "
        "inspector with family=Family(...); crosslens.adapters.draft_family(model) writes a first draft of one, with "
        f"addresses for {names}, and check_family(model, family) says what of it does not hold"
    )
