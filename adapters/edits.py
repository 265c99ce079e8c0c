"""The five edits, what makes one valid, and how one is applied to a tensor.

`check` runs before the model does and refuses everything that could go wrong; `CheckedEdit.bind` places a checked
edit in the columns of one forward (all of the prompt, or one generation step); `Piece.apply` does the arithmetic.

Positions are logical: position p of a row is its p-th real token and -1 the last of its prompt, so an edit means the
same to a row alone, left-padded or right-padded, and with or without a KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from .errors import EditError
from .inputs import Geometry
from .sites import Site

Selection = int | Sequence[int] | range | slice | Tensor
EditKind = Literal["replace", "add", "scale", "zero", "apply"]
EditFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one site; make it with `replace`, `add`, `scale`, `zero` or `apply`.

    Args:
        kind: what is done to the selected slice.
        site: a site name or glob; a glob makes the same edit at every site that it matches.
        value: tensor (replace, add), number (scale), function (apply), None (zero).
        rows, positions, heads, units: what is selected; None selects the whole axis. Negative numbers count from
            the end. `units` index the last axis (at attn.pattern: keys).
        steps: in generation, only positions that came into being at these steps; step 0 is the prompt.
    """

    kind: EditKind
    site: str
    value: Tensor | float | EditFunction | None = None
    rows: Selection | None = None
    positions: Selection | None = None
    heads: Selection | None = None
    units: Selection | None = None
    steps: Selection | None = None


class Where(TypedDict, total=False):
    """Which slice an edit is made to; each as in `Edit`."""

    rows: Selection | None
    positions: Selection | None
    heads: Selection | None
    units: Selection | None
    steps: Selection | None


def replace(
    site: str,
    value: Tensor,
    **where: Unpack[Where],
) -> Edit:
    """Replace the selected slice by `value`, which has exactly its shape, selected axes kept.

    At a residual site with `positions=[3]` that is (batch, 1, d_model). While generating without `positions`, every
    position gets the same value, so its position axis has size 1.
    """
    return Edit("replace", site, value, **where)


def add(
    site: str,
    value: Tensor,
    **where: Unpack[Where],
) -> Edit:
    """Add `value` to the selected slice (steering); shapes as in `replace`."""
    return Edit("add", site, value, **where)


def scale(
    site: str,
    factor: float,
    **where: Unpack[Where],
) -> Edit:
    """Multiply the selected slice by a finite number."""
    return Edit("scale", site, factor, **where)


def zero(
    site: str,
    **where: Unpack[Where],
) -> Edit:
    """Set the selected slice to zero (zero ablation)."""
    return Edit("zero", site, None, **where)


def apply(
    site: str,
    fn: EditFunction,
    **where: Unpack[Where],
) -> Edit:
    """Replace the selected slice by `fn(slice)`, a tensor of the same shape, dtype and device.

    The slice is a copy: `fn` may work on it in place. While generating it is called once a step, with the selected
    positions of that step.
    """
    return Edit("apply", site, fn, **where)


@dataclass(frozen=True, eq=False)
class Piece:
    """An edit of one rectangular slice.

    Args:
        kind, site, value: as in `Edit`.
        index: axis number -> (n,) indices, or (rows, n) where they differ by row; empty selects everything.
    """

    kind: EditKind
    site: str
    index: dict[int, Tensor]
    value: Tensor | float | EditFunction | None

    def apply(self, tensor: Tensor) -> Tensor:
        """The edited tensor, always a new one: (the site's shape) -> (the site's shape)."""
        if not self.index:
            new = self._on(tensor.clone()) if self.kind == "apply" else self._on(tensor)
            return new.expand(tensor.shape).clone() if self.kind == "replace" else new
        out, index = tensor.clone(), _outer(self.index, tensor.shape)
        out[index] = self._on(out[index])
        return out

    def _on(self, part: Tensor) -> Tensor:
        if self.kind == "zero":
            return torch.zeros_like(part)
        if isinstance(self.value, Tensor):
            return self.value if self.kind == "replace" else part + self.value
        if isinstance(self.value, float):
            return part * self.value
        assert callable(self.value), "check() lets no other value through"
        shape = part.shape
        out = self.value(part)
        if not isinstance(out, Tensor):
            raise EditError(
                f"apply at {self.site!r}: the function returned {type(out).__name__}; return the new tensor of shape "
                f"{tuple(shape)}"
            )
        if out.shape != shape or out.dtype != part.dtype or out.device != part.device:
            raise EditError(
                f"apply at {self.site!r}: the function returned {tuple(out.shape)} {out.dtype} on {out.device}; it "
                f"must return {tuple(shape)} {part.dtype} on {part.device}"
            )
        return out


@dataclass(frozen=True, eq=False)
class CheckedEdit:
    """An edit that fits its site.

    Args:
        edit: as the caller made it.
        site: the concrete site.
        rows: number of rows of the site's tensor.
        selected: axis number -> indices, for the axes that no forward changes.
        pos_axis, key_axis: which axes hold positions and keys.
        positions, keys: (rows, n) logical, or None for all.
        steps: generation steps, or None for all.
        geometry: overrides that of the forward, for a tensor whose axis 1 is not the tokens'.
    """

    edit: Edit
    site: str
    rows: int
    selected: dict[int, list[int]]
    pos_axis: int | None
    positions: Tensor | None
    key_axis: int | None
    keys: Tensor | None
    steps: frozenset[int] | None
    geometry: Geometry | None = None

    def bind(self, geometry: Geometry) -> list[Piece]:
        """Pieces that make this edit in one forward of the given geometry; empty where it does not reach it."""
        geometry = self.geometry or geometry
        rows = self.selected.get(0)
        found: dict[int, Tensor] = {}
        if self.pos_axis is not None:
            if self.positions is not None:
                found[self.pos_axis] = geometry.columns_of(self.positions, rows, self.steps)
            elif self.steps is not None:
                columns = torch.tensor(geometry.columns_at(self.steps), dtype=torch.long)
                found[self.pos_axis] = columns.expand(len(rows or range(self.rows)), -1)
        if self.key_axis is not None and self.keys is not None:
            found[self.key_axis] = geometry.keys_of(self.keys, rows)
        value = float(self.edit.value) if isinstance(self.edit.value, int) else self.edit.value
        if any(not idx.numel() for idx in found.values()):
            return []
        if any(bool((idx < 0).any()) for idx in found.values()):
            return self._ragged(found, value)
        index = {axis: torch.tensor(items) for axis, items in self.selected.items()}
        for axis, idx in found.items():
            same = bool((idx == idx[:1]).all())  # the same columns in every row: no index of rows needed
            index[axis] = idx[0] if same else idx
        if any(idx.ndim == 2 for idx in index.values()):
            index.setdefault(0, torch.arange(self.rows))
        return [Piece(self.edit.kind, self.site, index, value)]

    def _ragged(self, found: Mapping[int, Tensor], value: Tensor | float | EditFunction | None) -> list[Piece]:
        """One piece a row, where this forward holds only some of the positions, or different ones in each row."""
        pieces = []
        for i, row in enumerate(self.selected.get(0) or range(self.rows)):
            index = {axis: torch.tensor(items) for axis, items in self.selected.items()} | {0: torch.tensor([row])}
            part = value.narrow(0, i, 1) if isinstance(value, Tensor) else value
            for axis, idx in found.items():
                present = (idx[i] >= 0).nonzero().flatten()
                index[axis] = idx[i, present]
                if isinstance(part, Tensor) and part.shape[axis] == idx.shape[1]:
                    part = part.index_select(axis, present.to(part.device))
            if all(len(idx) for idx in index.values()):
                pieces.append(Piece(self.edit.kind, self.site, index, part))
        return pieces


def _outer(chosen: Mapping[int, Tensor], shape: Sequence[int]) -> tuple[slice | Tensor, ...]:
    """Index of the outer product of the chosen indices: adjacent index tensors, so that all axes stay in place."""
    by_row = any(idx.ndim == 2 for idx in chosen.values())
    first, last = (0 if by_row else min(chosen)), max(chosen)
    out: list[slice | Tensor] = [slice(None)] * first
    for axis in range(first, last + 1):
        idx = chosen.get(axis)
        if idx is None:
            idx = torch.arange(shape[axis])
        view = [1] * (last - first + 1)
        view[axis - first] = idx.shape[-1]
        if idx.ndim == 2:
            view[0] = idx.shape[0]
        out.append(idx.reshape(view))
    return tuple(out)


def check(
    edit: Edit, site: Site, shape: Sequence[int], axes: Sequence[str], geometry: Geometry, dtype: torch.dtype,
    device: torch.device,
) -> CheckedEdit:  # fmt: skip
    """Check an edit against its site, before anything runs.

    Args:
        edit: the edit.
        site: the concrete site.
        shape: shape of the site's tensor.
        axes: names of its axes, in the vocabulary of `sites.py`.
        geometry: rows, lengths and positions of the inputs.
        dtype, device: of the site's tensor.

    Raises:
        EditError: a selection out of range or on an axis that the site lacks; a value of the wrong type, shape,
            dtype or device. Names the site, what is wrong and what would be right.
    """
    where = f"{edit.kind} at {site.name!r}"
    axis_of = {name: i for i, name in enumerate(axes)}
    head_axis = axis_of.get("head", axis_of.get("kv_head"))
    pos_axis = axis_of.get("pos", axis_of.get("query"))
    key_axis = axis_of.get("key")
    selected: dict[int, list[int]] = {}
    if edit.rows is not None:
        selected[0] = _indices(edit.rows, shape[0], where, "row")
    if edit.heads is not None:
        if head_axis is None:
            raise EditError(f"{where}: this site has no head axis, its axes are {_shown(axes)}; drop heads=")
        selected[head_axis] = _indices(edit.heads, shape[head_axis], where, "head")
    rows = selected.get(0) or list(range(shape[0]))
    positions = keys = None
    if edit.positions is not None:
        if pos_axis is None:
            raise EditError(f"{where}: this site has no position axis, its axes are {_shown(axes)}; drop positions=")
        positions = _positions(edit.positions, rows, geometry, where, "position")
    if edit.units is not None:
        if key_axis is not None:
            keys = _positions(edit.units, rows, geometry, where, "key")
        else:
            selected[len(shape) - 1] = _indices(edit.units, shape[-1], where, "unit")
    steps = _steps(edit, geometry, where)
    expected = [len(selected[a]) if a in selected else n for a, n in enumerate(shape)]
    if positions is not None and pos_axis is not None:
        expected[pos_axis] = positions.shape[1]
    elif geometry.generating and pos_axis is not None:
        expected[pos_axis] = 1
    if keys is not None and key_axis is not None:
        expected[key_axis] = keys.shape[1]
    elif geometry.generating and key_axis is not None and edit.kind in ("replace", "add"):
        raise EditError(f"{where}: keys grow while generating; say which with units=")
    _check_value(edit, expected, axes, dtype, device, where)
    return CheckedEdit(edit, site.name, shape[0], selected, pos_axis, positions, key_axis, keys, steps)


def _check_value(
    edit: Edit,
    expected: Sequence[int],
    axes: Sequence[str],
    dtype: torch.dtype,
    device: torch.device,
    where: str,
) -> None:
    value = edit.value
    if edit.kind in ("replace", "add"):
        want = f"a {dtype} tensor of shape {tuple(expected)} = {_shown(axes)}"
        if not isinstance(value, Tensor):
            raise EditError(f"{where}: the value is {type(value).__name__}; it must be {want}")
        if tuple(value.shape) != tuple(expected):
            raise EditError(
                f"{where}: the value has shape {tuple(value.shape)}; it must be {want} (nothing is broadcast: use "
                "expand() to repeat a value)"
            )
        if value.dtype != dtype or value.device != device:
            raise EditError(f"{where}: the value is {value.dtype} on {value.device}; it must be {dtype} on {device}")
    elif edit.kind == "scale":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise EditError(f"{where}: the factor is {value!r}; it must be a finite number")
    elif edit.kind == "apply":
        if not callable(value):
            raise EditError(f"{where}: {value!r} is no function; give one that maps the slice to a new tensor")
    elif edit.kind != "zero":
        raise EditError(f"{where}: no such edit; use replace, add, scale, zero or apply")


def _indices(selection: Selection, size: int, where: str, what: str) -> list[int]:
    """Non-negative, distinct, in-range indices."""
    if isinstance(selection, slice):
        bounds = [b for b in (selection.start, selection.stop) if b is not None]
        if any(not -size <= b <= size for b in bounds):
            raise EditError(f"{where}: {what} slice {selection} is out of range; there are {size} {what}s")
        raw = list(range(*selection.indices(size)))
    else:
        raw = _integers(selection, where, what)
    if not raw:
        raise EditError(f"{where}: no {what} is selected by {selection!r}; leave {what}s= out to select all {size}")
    for i in raw:
        if not -size <= i < size:
            raise EditError(
                f"{where}: {what} {i} is out of range; there are {size} {what}s, 0 to {size - 1} "
                f"(or -1 to {-size} from the end)"
            )
    out = [i % size for i in raw]
    if len(set(out)) != len(out):
        raise EditError(f"{where}: {what}s {raw} name one {what} twice")
    return out


def _integers(selection: Selection, where: str, what: str) -> list[int]:
    if isinstance(selection, Tensor):
        if selection.dtype in (torch.bool, torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise EditError(f"{where}: {what}s are a {selection.dtype} tensor; give integer {what} numbers")
        selection = selection.flatten().tolist()
    if isinstance(selection, int) and not isinstance(selection, bool):
        return [selection]
    try:
        items = list(selection)  # type: ignore[arg-type]  # whatever it is, the check below decides
    except TypeError:
        items = [selection]
    if any(isinstance(i, bool) or not hasattr(i, "__index__") for i in items):
        raise EditError(f"{where}: {what}s are {selection!r}; give integer {what} numbers, such as {what}s=[0]")
    return [i.__index__() for i in items]


def _positions(selection: Selection, rows: Sequence[int], geometry: Geometry, where: str, what: str) -> Tensor:
    """Logical positions, (rows, n), non-negative; rows of different lengths count -1 from their own end."""
    lengths = [geometry.lengths[row] for row in rows]
    if isinstance(selection, slice):
        if len(set(lengths)) > 1:
            raise EditError(f"{where}: a {what} slice is ambiguous for rows of different lengths; give a list")
        selection = _indices(selection, lengths[0], where, what)
    raw = _integers(selection, where, what)
    out = []
    for row, length in zip(rows, lengths, strict=True):
        limit = length + geometry.new_positions
        for p in raw:
            if not -length <= p < limit:
                more = f" and {geometry.new_positions} generated ones are read" if geometry.new_positions else ""
                raise EditError(
                    f"{where}: {what} {p} is out of range; row {row} has {length} tokens{more}, so {what}s are 0 to "
                    f"{limit - 1} (or -1 to {-length} from the end of the prompt)"
                )
        out.append([p + length if p < 0 else p for p in raw])
        if len(set(out[-1])) != len(raw) or not raw:
            raise EditError(f"{where}: {what}s {raw} name no {what}, or one twice, in row {row} of {length} tokens")
    return torch.tensor(out)


def _steps(edit: Edit, geometry: Geometry, where: str) -> frozenset[int] | None:
    if edit.steps is None:
        return None
    if not geometry.generating:
        raise EditError(f"{where}: steps= is for generate(); a single forward has no steps")
    return frozenset(_indices(edit.steps, geometry.new_positions + 1, where, "step"))


def _shown(axes: Sequence[str]) -> str:
    return f"({', '.join(axes)})"
