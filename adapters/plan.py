"""What an adapter gets: a validated plan of one forward, as probes at the library's own addresses.

An adapter's whole work is to call `probe(raw)` when its library passes a tensor through `probe.key`, and to go on with
what it returns. Views, edits, ownership, call counting and stopping are the same for all and live here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .edits import CheckedEdit, Edit, check
from .errors import EditError, SiteError
from .families import Address, Layout
from .inputs import Geometry
from .sites import Site

Look = Callable[[str, Tensor], None]
"""Called with the name of a site and its tensor, which it must neither change nor keep."""


class StopForward(BaseException):
    """Raised by a probe at `until=` to end the forward; every adapter lets it through and catches it outside."""


@dataclass(frozen=True)
class View:
    """How a site's tensor lies in the library's tensor.

    Args:
        layout: as in `families.Address`.
        heads: number of heads in it.
        part: which of three parts of a fused projection.
        start, width: where that part lies on the last axis, where the parts are unequal.
    """

    layout: Layout = ""
    heads: int = 0
    part: int = 0
    start: int = 0
    width: int = 0

    def read(self, raw: Tensor, batch: int | None = None) -> Tensor:
        """(batch, pos, wide) -> (batch, pos, head, d_head), sharing memory; or `raw` itself.

        Args:
            raw: the library's tensor.
            batch: number of rows; needed where the layout is "flat", and the tensor does not tell.
        """
        if self.layout == "":
            return raw
        if self.layout == "flat":
            assert batch is not None, "a flat tensor does not tell its number of rows"
            return raw.view(batch, -1, *raw.shape[1:])
        if self.layout == "head first":
            return raw.transpose(1, 2)
        if self.layout == "h d":
            return raw.view(*raw.shape[:-1], self.heads, -1)
        if self.layout == "parts":
            return raw.narrow(-1, self.start, self.width).view(*raw.shape[:-1], self.heads, -1)
        if self.layout == "part h d":
            return raw.view(*raw.shape[:-1], 3, self.heads, -1).select(-3, self.part)
        return raw.view(*raw.shape[:-1], self.heads, 3, -1).select(-2, self.part)

    def write(self, raw: Tensor, site: Tensor) -> Tensor:
        """A new library tensor that holds `site` in its place."""
        if self.layout == "":
            return site
        if self.layout == "h d":
            return site.flatten(-2)
        if self.layout == "flat":
            return site.flatten(0, 1)
        if self.layout == "head first":
            return site.transpose(1, 2)
        out = raw.clone()
        self.read(out, len(site)).copy_(site)
        return out


class Point(NamedTuple):
    """Address in libraries that go by PyTorch modules: dotted path, and `input`, `output` or `softmax`."""

    path: str
    side: str


@dataclass(frozen=True)
class Location:
    """Where a site lives in a library.

    Args:
        key: the library's address; sites with equal keys share one probe. Anything hashable the adapter understands.
        view: how the site lies in the tensor there.
        shared: the tensor object itself also goes elsewhere, so an edit is made in place.
    """

    key: Hashable
    view: View = field(default_factory=View)
    shared: bool = False


def locate(address: Address, site: Site, sizes: Mapping[str, int]) -> Location:
    """Location of a canonical site for libraries that address PyTorch modules: key is a `Point`."""
    heads = sizes["kv_head"] if "kv_head" in site.axes else sizes["head"]
    q, kv = (sizes[axis] * sizes["d_head"] for axis in ("head", "kv_head"))
    start, width = ((0, q), (q, kv), (q + kv, kv))[address.part] if address.layout == "parts" else (0, 0)
    view = View(address.layout, heads, address.part, start, width)
    return Location(Point(address.module, address.side), view, address.shared)


@dataclass
class Visit:
    """What is done for one site at its location."""

    site: Site
    location: Location
    edits: list[CheckedEdit] = field(default_factory=list)
    late: list[Edit] = field(default_factory=list)
    capture: bool = False
    stop: bool = False


def check_before(visits: Iterable[Visit], stop: Site) -> None:
    """Raise SiteError if anything is to happen after the site that the forward stops at."""
    for visit in visits:
        if stop.order >= 0 and visit.site.order > stop.order:
            what = "captured" if visit.capture else "edited"
            raise SiteError(f"site {visit.site.name!r} is {what} but comes after until={stop.name!r}; stop later")


@dataclass
class Plan:
    """One forward, validated.

    Attributes:
        args, kwargs: of the model's forward.
        geometry: which column holds what.
        grad: whether captures stay in the autograd graph.
        visits: what is done at each site.
        captured: results, filled by the probes: site name -> tensor.
        live: with `grad`, site name -> (the library's tensor in the graph, view).
        reached: names of the sites that the forward came to.
        inside: whether a probe is at work.
        look: called with each captured tensor in the place of copying it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    geometry: Geometry
    grad: bool = False
    visits: list[Visit] = field(default_factory=list)
    captured: dict[str, Any] = field(default_factory=dict)
    live: dict[str, tuple[Tensor, View]] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    inside: bool = False
    look: Look | None = None

    def probes(self) -> list[Probe]:
        """One probe a location, in order of execution where that is known; made anew at each call."""
        by_key: dict[Hashable, list[Visit]] = {}
        for visit in sorted(self.visits, key=lambda v: v.site.order):
            by_key.setdefault(visit.location.key, []).append(visit)
        for visits in by_key.values():  # an edit in place first: one that makes a new tensor would take it away
            visits.sort(key=lambda v: not v.location.shared)
        return [Probe(key, visits, self) for key, visits in by_key.items()]

    def needs(self, predicate: Callable[[Site], bool]) -> bool:
        """Whether any visited site satisfies the predicate."""
        return any(predicate(visit.site) for visit in self.visits)


class Probe:
    """Edits, captures and stops at one location; call it with what the library passes through there."""

    def __init__(self, key: Hashable, visits: Sequence[Visit], plan: Plan) -> None:
        self.key = key
        self.visits = visits
        self.plan = plan
        self.calls = 0

    @property
    def edits(self) -> bool:
        """Whether this probe may change the tensor."""
        return any(visit.edits or visit.late for visit in self.visits)

    def __call__(self, raw: Any) -> Any:
        """Visit the library's tensor; returns what the library goes on with (the same object if unchanged).

        Raises:
            EditError: an edit of a module or native site does not fit the tensor found there.
            SiteError: a tuple or dict where a tensor was asked for, or a module that ran more than once.
            StopForward: this is the `until` site.
        """
        if self.plan.inside:  # a forward that the caller's own function started: not the one that was planned
            return raw
        self.plan.inside = True
        try:
            return self._visit(raw)
        finally:
            self.plan.inside = False

    def _visit(self, raw: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        here = [visit for visit in self.visits if self._concerns(visit, call)]
        for visit in here:  # sites with several names here: a capture by one sees an edit by another
            if visit.edits or visit.late:
                raw = self._at_tensor(visit, raw, self._edit)
        for visit in here:
            if visit.capture:
                raw = self._at_tensor(visit, raw, self._capture)
            self.plan.reached.add(visit.site.name)
        if any(visit.stop for visit in here):
            raise StopForward
        return raw

    def _concerns(self, visit: Visit, call: int) -> bool:
        """Whether this call of the module is the one that the visit is for."""
        if visit.site.kind != "module":
            return True
        wanted = visit.site.module.call
        if wanted is None and call and visit.capture:
            raise SiteError(
                f"site {visit.site.name!r}: the module runs more than once in a forward; say which call: "
                f"{visit.site.name}#0 is the first"
            )
        return wanted is None or wanted == call

    def _at_tensor(self, visit: Visit, value: Any, act: Callable[[Visit, Tensor], Tensor]) -> Any:
        """Act on the visit's tensor, which may lie in a tuple or mapping; returns the value with what came of it."""
        name, items = visit.site.name, visit.site.module.items if visit.site.kind == "module" else ()
        if visit.site.kind == "canonical" and isinstance(value, tuple):  # a module that returns more beside it
            items = (0,)
        elif visit.site.kind == "canonical" and isinstance(value, Mapping):  # what the model itself returns
            items = ("logits",)
        tensor = _pick(value, items, name)
        if isinstance(tensor, Tensor):
            new = act(visit, tensor)
            return value if new is tensor else _put(value, items, new)
        if visit.late or self.plan.grad:
            raise SiteError(f"site {name!r} holds {_describe(tensor)}; {_how_to_pick(tensor, name)}")
        self.plan.captured[name] = tree_map(_own, tensor)
        return value

    def _edit(self, visit: Visit, raw: Tensor) -> Tensor:
        view, edits = visit.location.view, visit.edits
        if visit.late:  # its shape is known only now
            edits = _check_late(visit, raw, self.plan.geometry)
        site = view.read(raw.clone() if visit.location.shared else raw, self.plan.geometry.batch)
        for edit in edits:
            for piece in edit.bind(self.plan.geometry):
                site = piece.apply(site)
        new = view.write(raw, site)
        return raw.copy_(new) if visit.location.shared else new

    def _capture(self, visit: Visit, raw: Tensor) -> Tensor:
        view, name = visit.location.view, visit.site.name
        if self.plan.look is not None:
            self.plan.look(name, view.read(raw, self.plan.geometry.batch).detach())
            return raw
        if not self.plan.grad:
            read = view.read(raw, self.plan.geometry.batch)
            self.plan.captured[name] = read.detach().clone(memory_format=torch.contiguous_format)
            return raw
        if visit.location.shared and raw._is_view():  # the residual goes on from what it is a view of
            delta = torch.zeros_like(raw, requires_grad=True)
            self.plan.live[name] = (delta, view)
            return raw.add_(delta)
        if not raw.requires_grad:  # every parameter before this site is frozen
            if not raw.is_floating_point():
                raise SiteError(f"site {name!r} holds {raw.dtype}; a gradient needs a floating-point tensor")
            raw = raw.requires_grad_() if visit.location.shared else raw.detach().requires_grad_()
        self.plan.live[name] = (raw, view)
        return raw


def _own(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _check_late(visit: Visit, tensor: Tensor, geometry: Geometry) -> list[CheckedEdit]:
    """Check edits of a tensor whose shape nobody knew before: axis 0 rows, axis 1 of three or more positions."""
    if tensor.ndim == 0:
        raise EditError(f"edit at {visit.site.name!r}: the tensor there is a single number; it has no axes to edit")
    axes = [
        "batch",
        *(["pos"] if tensor.ndim > 2 else []),
        *(f"axis {i}" for i in range(2, tensor.ndim - 1)),
        "unit",
    ]
    axes = axes[: tensor.ndim] if tensor.ndim > 1 else ["batch"]
    own: Geometry | None = None
    if tensor.ndim < 3 or tensor.shape[1] != geometry.columns:  # its axis 1 is not the tokens': count plainly
        width = tensor.shape[1] if tensor.ndim > 1 else 0
        own = Geometry(tensor.shape[0], [width] * tensor.shape[0])
    like = (tensor.dtype, tensor.device)
    found = [check(edit, visit.site, tensor.shape, axes, own or geometry, *like) for edit in visit.late]
    return [replace(edit, geometry=own) for edit in found]


def _pick(value: Any, items: Sequence[int | str], name: str) -> Any:
    for item in items:
        try:
            value = value[item]
        except (KeyError, IndexError, TypeError):
            raise SiteError(f"site {name!r}: nothing at {item!r} in {_describe(value)}") from None
    return value


def _put(value: Any, items: Sequence[int | str], new: Tensor) -> Any:
    """`value` with the tensor at `items` replaced; containers are rebuilt, never changed."""
    if not items:
        return new
    item, rest = items[0], items[1:]
    if isinstance(value, tuple):
        parts = [_put(v, rest, new) if i == item else v for i, v in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_put(v, rest, new) if i == item else v for i, v in enumerate(value)]
    out = type(value)(**value) if hasattr(value, "to_tuple") else dict(value)  # a ModelOutput, or a mapping
    out[item] = _put(value[item], rest, new)
    return out


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Mapping):
        return f"a mapping with {sorted(map(str, value))}"
    return f"a {type(value).__name__}"


def _how_to_pick(value: Any, name: str) -> str:
    if isinstance(value, Mapping) and value:
        return f"pick a tensor: {name}.{next(iter(value))}"
    if isinstance(value, tuple | list):
        return f"pick a tensor: {name}[0]"
    return "it is no tensor"
