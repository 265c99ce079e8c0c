"""Which cells there are, and a small part of them in which every combination of two or three levels occurs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from itertools import combinations

from crosslens.adapters import InputError
from crosslens.adapters.attribution import METHODS
from crosslens.adapters.capabilities import FAMILY_NAMES
from crosslens.adapters.conformance.kit import FAMILIES
from crosslens.adapters.conformance.right import LAYER, sites_of

DTYPES = ("float64", "float32", "bfloat16")
ATTENTIONS = ("eager", "sdpa")
PADDINGS = ("none", "left", "right")
BATCHES = (1, 3)
EDITS = ("replace", "add", "scale", "zero", "apply")
WHERES = ("whole", "positions", "units", "rows")
MODULES = ("module:input", "module:output")
"""By their modules: what enters the MLP's down projection, and what leaves the MLP."""

WHOLE_INPUT = "input"
"""In the place of a site, for attribution methods that have none."""

LAYERWISE = "layer_gradient_x_activation"
THIN = ("penzai", "torchlens")
"""Backends whose every call costs 50 to 100 times that of the others (penzai compiles, torchlens logs every operation):
all pairs of levels are run, not all triples, and of the two short dtypes one in each cell."""

OWN: dict[str, tuple[str, ...]] = {
    "capture": ("embed", "resid_pre", "attn.pattern", "resid_post", "final_norm", "logits"),
    "replace": ("embed", "resid_pre", "resid_post", "final_norm"),
    "add": ("embed", "final_norm"),
    "scale": ("embed", "attn.z", "mlp.post", "final_norm"),
    "zero": ("embed", "attn.z", "mlp.post", "final_norm"),
    "apply": ("embed", "final_norm"),
    "gradients": ("embed", "final_norm", "logits"),
    "generate": ("resid_pre", "resid_post", "logits"),
    "attribute:input_x_gradient": (WHOLE_INPUT,),
}
"""Operation -> sites, of families that have no oracle: what a model's own forward tells without any hook."""

_ENDS = ("embed", "final_norm", "logits", WHOLE_INPUT)
_OWN_WHERES = {"resid_pre": ("whole", "rows"), "resid_post": ("whole", "rows")} | dict.fromkeys(
    ("attn.z", "mlp.post"), ("whole", "units", "rows")
)


@dataclass(frozen=True, order=True)
class Cell:
    """One question, asked in every dtype.

    Args:
        family: of the tiny model.
        site: canonical name, `module:input`, `module:output`, or `input` for attribution of the whole input.
        operation: `capture`, one of the edits, `gradients`, `generate`, `generate+add`, or `attribute:METHOD`.
        where: which part of the site an edit changes; `whole` for all else.
        attention: implementation that the caller's model has.
        padding: side of it.
        batch: rows.
    """

    family: str
    site: str
    operation: str
    where: str
    attention: str
    padding: str
    batch: int

    @property
    def id(self) -> str:
        """`family/site/operation/where/attention/padding/batch`."""
        return "/".join(map(str, astuple(self)))

    @property
    def local(self) -> str:
        """The site without its block: `attn.z` of `blocks.1.attn.z`."""
        head, _, rest = self.site.partition(".")
        return rest.partition(".")[2] if head == "blocks" else self.site

    @property
    def method(self) -> str:
        """Of attribution; empty for other operations."""
        return self.operation.partition(":")[2]

    @classmethod
    def of(cls, name: str) -> Cell:
        """The cell of an id.

        Raises:
            InputError: there is no such cell.
        """
        left, parts, names = list(possible()), name.split("/"), [field.name for field in fields(cls)]
        if len(parts) != len(names):
            raise InputError(f"a cell is {'/'.join(names)}, such as {left[0].id!r}, not {name!r}")
        for field, part in zip(names, parts, strict=True):
            known = list(dict.fromkeys(str(getattr(cell, field)) for cell in left))
            if part not in known:
                raise InputError(f"there is no cell {name!r}: its {field} must be {' or '.join(known)}, not {part!r}")
            left = [cell for cell in left if str(getattr(cell, field)) == part]
        return left[0]


@cache
def possible() -> tuple[Cell, ...]:
    """Every cell: the full crossing, less what does not exist."""
    return tuple(
        Cell(family, site, operation, where, attention, padding, batch)
        for family in FAMILY_NAMES
        for site, operation in _asked(family)
        for where in _wheres(family, site, operation)
        for attention in ATTENTIONS
        if (family, attention) != ("gemma2", "sdpa")  # transformers has none
        for padding in PADDINGS
        for batch in BATCHES
    )


def _asked(family: str) -> Iterator[tuple[str, str]]:
    if family not in FAMILIES:
        for operation, locals_ in OWN.items():
            for local in locals_:
                encoder = local == "final_norm" or operation == "generate" or operation.startswith("attribute")
                if family != "bert" or not encoder:
                    yield local if local in _ENDS else f"blocks.{LAYER}.{local}", operation
        return
    for site in (*sites_of(family), *MODULES):
        yield from ((site, operation) for operation in ("capture", *EDITS, "gradients", "generate"))
        if not site.endswith("pattern"):
            yield site, "generate+add"
            if site not in MODULES:  # the layer methods take canonical sites
                yield site, f"attribute:{LAYERWISE}"
    yield from ((WHOLE_INPUT, f"attribute:{method}") for method in METHODS if method != LAYERWISE)


def _wheres(family: str, site: str, operation: str) -> tuple[str, ...]:
    if operation == "generate+add":
        return ("whole", "positions")
    if operation not in EDITS:
        return ("whole",)
    return WHERES if family in FAMILIES else _OWN_WHERES.get(site.removeprefix(f"blocks.{LAYER}."), WHERES)


def covering(cells: Sequence[Cell], strength: int) -> list[Cell]:
    """Cells in which every combination of `strength` levels occurs that occurs in `cells`.

    Greedy, and the same every time: for the rarest combination that is still missing, the cell that has it and the
    most other missing ones (as AETG does: Cohen et al. 1997, IEEE Trans. Softw. Eng. 23(7), 437-444).
    """
    axes = list(combinations(range(len(fields(Cell))), strength))
    values = [astuple(cell) for cell in cells]

    def parts(value: tuple[object, ...]) -> list[tuple[object, ...]]:
        return [(chosen, *(value[axis] for axis in chosen)) for chosen in axes]

    holders: dict[tuple[object, ...], list[int]] = {}
    for number, value in enumerate(values):
        for part in parts(value):
            holders.setdefault(part, []).append(number)
    missing, taken = set(holders), []
    for part in sorted(holders, key=lambda part: len(holders[part])):  # stable: the first found of equals
        if part in missing:
            best = max(_spread(holders[part]), key=lambda number: sum(p in missing for p in parts(values[number])))
            taken.append(best)
            missing.difference_update(parts(values[best]))
    return [cells[number] for number in sorted(taken)]


def _spread(numbers: list[int], most: int = 96) -> Iterable[int]:
    """Not more than some of them, from all over."""
    return numbers[:: -(-len(numbers) // most)]


@cache
def design(backend: str) -> tuple[Cell, ...]:
    """The cells that are run through a backend; grouped by model."""
    cells = covering(possible(), 2 if backend in THIN else 3)
    return tuple(sorted(cells, key=lambda cell: (FAMILY_NAMES.index(cell.family), cell.attention)))


def dtypes_of(backend: str, cell: Cell) -> tuple[str, ...]:
    """In which a cell is run: float64 always, which is what the others are proved by.

    One of the two others where a backend is in `THIN`, in turns along its design.
    """
    if backend not in THIN:
        return DTYPES
    return ("float64", DTYPES[1 + design(backend).index(cell) % 2]) if cell in design(backend) else DTYPES
