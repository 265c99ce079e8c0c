"""One name for a tensor on every backend: parsing, globs, shapes, and errors that name the nearest site.

Every adapter gets its sites from here, validated; none parses a name itself.

    canonical   blocks.7.attn.z                          portable, the vocabulary below
    module      module:NAME:output, module:NAME:input    any submodule; `[0]` or `.key` picks from a tuple or dict,
                                                         `#2` the third call of a module that runs several times
    native      native:ADDRESS                           the library's own address, unchanged; not portable
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .errors import SiteError

Kind = Literal["canonical", "module", "native"]

GLOBAL_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("batch", "pos", "d_model"),
    "final_norm": ("batch", "pos", "d_model"),
    "logits": ("batch", "pos", "d_vocab"),
}
BLOCK_AXES: dict[str, tuple[str, ...]] = {  # in order of execution
    "resid_pre": ("batch", "pos", "d_model"),
    "attn.q": ("batch", "pos", "head", "d_head"),
    "attn.k": ("batch", "pos", "kv_head", "d_head"),
    "attn.v": ("batch", "pos", "kv_head", "d_head"),
    "attn.pattern": ("batch", "head", "query", "key"),
    "attn.z": ("batch", "pos", "head", "d_head"),
    "attn.out": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "mlp.post": ("batch", "pos", "d_mlp"),
    "mlp.out": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
}

_MODULE = re.compile(r"^module:(?P<path>[^:#\[\]]*):(?P<side>input|output)(?P<item>(\[\d+\]|\.\w+)*)(#(?P<call>\d+))?$")
_BLOCK = re.compile(r"^blocks\.(?P<layer>[^.]+)\.(?P<local>.+)$")
_GLOB = re.compile(r"[*?{}]")


@dataclass(frozen=True)
class Site:
    """A named tensor of one model.

    Args:
        name: what the user wrote, one concrete name.
        kind: `canonical`, `module` or `native`.
        axes: names of the axes, in order; empty where only the run can tell (module and native sites).
        sizes: sizes of the axes that the model fixes, such as `{"d_model": 576}`.
        order: place in the order of execution; -1 where unknown.
    """

    name: str
    kind: Kind = "canonical"
    axes: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False, compare=False)
    order: int = -1

    @property
    def local(self) -> str:
        """The name without its block: `attn.z` of `blocks.7.attn.z`."""
        match = _BLOCK.match(self.name) if self.kind == "canonical" else None
        return match["local"] if match else self.name

    @property
    def layer(self) -> int | None:
        """Block number, or None outside the blocks."""
        match = _BLOCK.match(self.name) if self.kind == "canonical" else None
        return int(match["layer"]) if match else None

    @property
    def module(self) -> ModuleAddress:
        """Parts of a module site.

        Raises:
            SiteError: this is no module site.
        """
        match = _MODULE.match(self.name)
        if match is None:
            raise SiteError(f"{self.name!r} is no module site; write module:NAME:output or module:NAME:input")
        items = tuple(int(i) if i else k for i, k in re.findall(r"\[(\d+)\]|\.(\w+)", match["item"]))
        return ModuleAddress(match["path"], match["side"], items, int(match["call"]) if match["call"] else None)

    @property
    def address(self) -> str:
        """The library's own address of a native site."""
        return self.name.removeprefix("native:")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ModuleAddress:
    """Parts of `module:PATH:SIDE[item]#call`; `call` None where the module runs once a forward."""

    path: str
    side: str
    items: tuple[int | str, ...]
    call: int | None


class SiteTable:
    """All sites of one model, and the only place where a name or pattern is resolved.

    Args:
        canonical: the model's canonical sites in order of execution; empty for an unknown family.
        modules: dotted paths of all submodules; the root is the empty path.
        absent: canonical name without its block -> why this model has no such site.
        n_layers: number of blocks, 0 for an unknown family.
        unknown_family: what to say when a canonical site is asked of an unknown family.
    """

    def __init__(
        self,
        canonical: Sequence[Site],
        modules: Iterable[str],
        absent: Mapping[str, str] | None = None,
        n_layers: int = 0,
        unknown_family: str = "",
    ) -> None:
        self.canonical = {site.name: site for site in canonical}
        self.modules = set(modules)
        self.absent = dict(absent or {})
        self.n_layers = n_layers
        self.unknown_family = unknown_family
        self._resolved: dict[str, tuple[Site, ...]] = {}

    def resolve(self, patterns: str | Site | Iterable[str | Site]) -> list[Site]:
        """Concrete sites that the names and globs select, each once, in the order asked for.

        Raises:
            SiteError: a name that does not parse, or a pattern that matches nothing; names the nearest sites.
        """
        if isinstance(patterns, str | Site):
            patterns = [patterns]
        found: dict[str, Site] = {}
        for pattern in patterns:
            if not isinstance(pattern, str | Site):
                raise SiteError(f"a site is a name such as 'blocks.0.resid_post', not {pattern!r}")
            for site in self._resolve_one(str(pattern)):
                found.setdefault(site.name, site)
        return list(found.values())

    def _resolve_one(self, name: str) -> tuple[Site, ...]:
        if name not in self._resolved:  # a sweep asks for the same names thousands of times
            if name.startswith("native:"):
                if name == "native:":
                    raise SiteError("'native:' is empty; write native:ADDRESS with the library's own address")
                self._resolved[name] = (Site(name, "native"),)
            elif name.startswith("module:"):
                self._resolved[name] = self._resolve_module(name)
            else:
                self._resolved[name] = self._resolve_canonical(name)
        return self._resolved[name]

    def _resolve_canonical(self, name: str) -> tuple[Site, ...]:
        if name in self.canonical:
            return (self.canonical[name],)
        if not self.canonical:
            raise SiteError(f"site {name!r}: {self.unknown_family}")
        if _GLOB.search(name):
            regex = _glob_regex(name)
            matches = tuple(site for key, site in self.canonical.items() if regex.fullmatch(key))
            if matches:
                return matches
        raise SiteError(self._explain(name))

    def _resolve_module(self, name: str) -> tuple[Site, ...]:
        match = _MODULE.match(name)
        if _GLOB.search(name):
            regex = _glob_regex(name)
            names = [f"module:{path}:{side}" for path in sorted(self.modules) for side in ("input", "output")]
            matches = tuple(Site(n, "module") for n in names if regex.fullmatch(n))
            if matches:
                return matches
            raise SiteError(f"pattern {name!r} matches no module; nearest: {_near(name, names)}")
        if match is None:
            raise SiteError(
                f"site {name!r} does not parse; write module:NAME:output or module:NAME:input, with [0] or .key to "
                "pick from a tuple or dict and #1 for the second call, as in module:layers.0:output[0]#1"
            )
        if match["path"] not in self.modules:
            raise SiteError(
                f"site {name!r}: the model has no submodule {match['path']!r}; nearest: "
                f"{_near(match['path'], self.modules)}"
            )
        return (Site(name, "module"),)

    def _explain(self, name: str) -> str:
        """What is wrong with a canonical name that matches nothing, and what would be right."""
        match = _BLOCK.match(name)
        if match:
            layer, local = match["layer"], match["local"]
            if local in self.absent:
                return f"site {name!r} does not exist in this model: {self.absent[local]}"
            if local in BLOCK_AXES and re.fullmatch(r"-?\d+", layer):
                last = self.n_layers - 1
                return (
                    f"site {name!r}: layer {layer} is out of range; the model has {self.n_layers} layers, "
                    f"blocks.0 to blocks.{last} (layers count from 0; the last is blocks.{last}.{local})"
                )
        elif name in self.absent:
            return f"site {name!r} does not exist in this model: {self.absent[name]}"
        what = "pattern" if _GLOB.search(name) else "site"
        return (
            f"{what} {name!r} matches nothing in this model; nearest: {_near(name, self.canonical)}. "
            "Other tensors: module:NAME:output, module:NAME:input, native:ADDRESS"
        )


def canonical_sites(n_layers: int, sizes: Mapping[str, int], absent: Iterable[str] = ()) -> list[Site]:
    """Every canonical site of a decoder with `n_layers` blocks, in order of execution, without the `absent` ones."""
    skip = set(absent)
    names = ["embed"]
    names += [f"blocks.{layer}.{local}" for layer in range(n_layers) for local in BLOCK_AXES if local not in skip]
    names += ["final_norm", "logits"]
    sites = []
    for order, name in enumerate(n for n in names if n not in skip):
        match = _BLOCK.match(name)
        axes = BLOCK_AXES[match["local"]] if match else GLOBAL_AXES[name]
        sites.append(Site(name, "canonical", axes, {a: sizes[a] for a in axes if a in sizes}, order))
    return sites


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """`*` any characters, `?` one, `{a,b}` either; all else literal."""
    if pattern.count("{") != pattern.count("}"):
        raise SiteError(f"pattern {pattern!r} has an unbalanced brace; write it as blocks.{{3,4}}.attn.z")
    out, depth = "", 0
    for char in pattern:
        if char in "{}":
            depth += 1 if char == "{" else -1
        out += {"*": ".*", "?": ".", "{": "(?:", "}": ")", ",": "|" if depth else ","}.get(char) or re.escape(char)
    return re.compile(out)


def _near(name: str, candidates: Iterable[str]) -> str:
    names = list(candidates)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or sorted(names)[:3]
    return ", ".join(repr(c) for c in close) or "none"
