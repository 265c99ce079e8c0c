"""An edit changes exactly the slice that it names: checked against plain loops, for any selection and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from crosslens.adapters import EditError, Site, add, apply, replace, scale, zero
from crosslens.adapters.edits import Edit, check
from crosslens.adapters.inputs import Geometry, extend, geometry_of, positions_from_mask

Z = Site("blocks.0.attn.z", axes=("batch", "pos", "head", "d_head"), sizes={"head": 3, "d_head": 2})
PATTERN = Site("blocks.0.attn.pattern", axes=("batch", "head", "query", "key"), sizes={"head": 3})


def make(edit: Edit, site: Site, geometry: Geometry, tensor: Tensor, forward: Geometry | None = None) -> Tensor:
    checked = check(edit, site, tensor.shape, site.axes, geometry, tensor.dtype, tensor.device)
    for piece in checked.bind(forward or geometry):
        tensor = piece.apply(tensor)
    return tensor


@st.composite
def batches(draw: Any) -> Geometry:
    """A padded batch: each row's tokens are contiguous, with padding on either side."""
    width, rows = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    mask = torch.zeros(rows, width, dtype=torch.long)
    for row in range(rows):
        start = draw(st.integers(0, width - 1))
        mask[row, start : draw(st.integers(start + 1, width))] = 1
    return geometry_of(torch.zeros_like(mask), None if bool(mask.all()) else mask)


def subset(draw: Any, size: int) -> list[int] | None:
    if draw(st.booleans()):
        return None
    chosen = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    return [i - size if draw(st.booleans()) else i for i in chosen]


def _twice(positions: list[int] | None, geometry: Geometry) -> bool:
    """Whether a row has one position by two numbers, counted from either end: that is refused."""
    return any(len({p % n for p in positions or ()}) < len(positions or ()) for n in geometry.lengths)


@given(st.data())
def test_scale_changes_the_selected_elements_and_no_other(data: st.DataObject) -> None:
    geometry = data.draw(batches())
    assert geometry.position is not None
    rows, width = geometry.position.shape
    tensor = torch.randn(rows, width, 3, 2, dtype=torch.float64)
    chosen = {
        "rows": subset(data.draw, rows),
        "positions": subset(data.draw, min(geometry.lengths)),
        "heads": subset(data.draw, 3),
        "units": subset(data.draw, 2),
    }
    assume(not _twice(chosen["positions"], geometry))
    got = make(scale(Z.name, 3.0, **chosen), Z, geometry, tensor)  # type: ignore[arg-type]
    want = tensor.clone()
    for row in range(rows):
        length = geometry.lengths[row]
        for column in range(width):
            position = int(geometry.position[row, column])
            for head in range(3):
                for unit in range(2):
                    inside = [
                        _in(row, chosen["rows"], rows),
                        chosen["positions"] is None or (position >= 0 and _in(position, chosen["positions"], length)),
                        _in(head, chosen["heads"], 3),
                        _in(unit, chosen["units"], 2),
                    ]
                    if all(inside):
                        want[row, column, head, unit] *= 3
    assert torch.equal(got, want)


def _in(index: int, chosen: list[int] | None, size: int) -> bool:
    return chosen is None or index in [i % size for i in chosen]


@given(st.data())
def test_a_replaced_slice_is_the_value(data: st.DataObject) -> None:
    """The value has the shape of the slice, in the order in which the indices are given."""
    geometry = data.draw(batches())
    assert geometry.position is not None
    tensor = torch.randn(*geometry.position.shape, 3, 2, dtype=torch.float64)
    positions = subset(data.draw, min(geometry.lengths)) or [0]
    assume(not _twice(positions, geometry))
    heads = subset(data.draw, 3) or [2, 0]
    value = torch.randn(len(tensor), len(positions), len(heads), 2, dtype=torch.float64)
    got = make(replace(Z.name, value, positions=positions, heads=heads), Z, geometry, tensor)
    for row in range(len(tensor)):
        for i, p in enumerate(positions):
            column = int((geometry.position[row] == (p % geometry.lengths[row])).nonzero()[0])
            for j, head in enumerate(heads):
                assert torch.equal(got[row, column, head % 3], value[row, i, j])


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_cached_steps_together_edit_what_one_forward_edits(prompt: int, new: int, data: st.DataObject) -> None:
    """Law of absolute positions: prompt, then one column a step, gives the columns of the whole sequence."""
    rows = 2
    pad = data.draw(st.integers(0, prompt - 1))
    mask = torch.ones(rows, prompt, dtype=torch.long)
    mask[0, :pad] = 0
    start = geometry_of(torch.zeros_like(mask), None if pad == 0 else mask)
    start = Geometry(start.batch, start.lengths, start.position, start.key_position, start.step, new, True, start.plain)
    total = min(start.lengths) + new
    positions = data.draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True))
    steps = data.draw(st.one_of(st.none(), st.lists(st.integers(0, new), min_size=1, unique=True)))
    value = torch.randn(rows, len(positions), 3, 2, dtype=torch.float64)
    edit = add(Z.name, value, positions=positions, steps=steps)
    whole = torch.randn(rows, prompt + new, 3, 2, dtype=torch.float64)
    cached, geometry = [make(edit, Z, start, whole[:, :prompt])], start
    uncached = start
    for step in range(1, new + 1):
        geometry = extend(geometry, step, cached=True)
        cached.append(make(edit, Z, start, whole[:, prompt + step - 1 : prompt + step], geometry))
        uncached = extend(uncached, step, cached=False)
    assert torch.equal(torch.cat(cached, dim=1), make(edit, Z, start, whole, uncached))


def test_positions_come_from_the_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert positions_from_mask(mask).tolist() == [[-1, -1, 0, 1], [0, 1, 2, -1]]


def test_keys_of_a_pattern_are_logical_positions_too() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    geometry = geometry_of(torch.zeros_like(mask), mask)
    tensor = torch.ones(2, 3, 3, 3)
    got = make(zero(PATTERN.name, units=[0], positions=[-1]), PATTERN, geometry, tensor)
    want = torch.ones(2, 3, 3, 3)
    want[0, :, 2, 1] = 0  # the first real token of row 0 stands in column 1
    want[1, :, 2, 0] = 0
    assert torch.equal(got, want)


def test_apply_gets_a_copy_of_the_slice() -> None:
    geometry = geometry_of(torch.zeros(1, 2), None)
    tensor = torch.ones(1, 2, 3, 2)
    got = make(apply(Z.name, lambda part: part.zero_(), heads=[1]), Z, geometry, tensor)
    assert bool(tensor.all())
    assert got[:, :, 1].abs().sum() == 0
    assert bool(got[:, :, [0, 2]].all())


@pytest.mark.parametrize("selection", [[True], "ab", 1.5, [None], torch.tensor([0.0]), {"a": 1}])
def test_a_selection_that_is_no_integers_is_refused(selection: Any) -> None:
    geometry = geometry_of(torch.zeros(1, 2), None)
    with pytest.raises(EditError, match="integer"):
        make(zero(Z.name, heads=selection), Z, geometry, torch.ones(1, 2, 3, 2))
