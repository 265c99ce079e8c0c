"""One metric for each of many edits of the same inputs: patching maps over layers, positions, heads and neurons.

    edits = [[replace(f"blocks.{l}.attn.z", clean[l][:, :, h : h + 1], heads=[h])] for l in layers for h in heads]
    effect = sweep(lens, corrupt, edits, lambda logits: logits[:, -1, right] - logits[:, -1, wrong])

The same numbers as a forward an edit, for less work. Edits that begin at one block go through the model together, as
rows of one batch, and start from the residual stream that enters that block, which none of them changes. Nor do they
change positions before the first that they touch (`reach.py`): of those the stored keys and values are read, and an
edit that puts in what is there already needs no forward at all. `tail.py` makes the model of which such a part can run;
each of its forwards carries one copy of the inputs without edits, and where that does not end in the logits of the
whole model, the whole model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from crosslens.adapters import Edit, InputError, Inspector, Site, UnsupportedError
from crosslens.adapters.inputs import Inputs

from .base import Progress
from .progress import progress_bar
from .reach import first_change
from .sweep_store import SweepStore, facts_of
from .tail import REFUSALS, Part, Stored, Tail, tail_of
from .workload import weights_digest

Metric = Callable[[Tensor], Tensor]
"""logits (batch, pos, d_vocab) -> (batch,), as if the edit had run alone."""

MOST_ROWS = 64
SHARE_OF_MEMORY = 0.25


def sweep(
    lens: Inspector,
    inputs: Any,
    edits: Sequence[Sequence[Edit]],
    metric: Metric,
    *,
    logits_at: Sequence[int] | None = None,
    max_rows: int | None = None,
    out: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> Tensor:
    """The metric under each of many edits: (len(edits), batch).

    Args:
        lens: an open inspector. Where the model trains, and at `module:` and `native:` sites, elements run one by one.
        inputs: as in `Inspector.run`.
        edits: each element is a list of edits that is run as if alone.
        metric: of the logits that an element gives, (batch, pos, d_vocab).
        logits_at: the only positions whose logits the metric reads, such as `[-1]`; it then gets these alone, (batch,
            len(logits_at), d_vocab), in this order. Others are not computed where the backend allows it.
        max_rows: rows of one forward; None takes what a quarter of the free memory holds, at most 64.
        out: a file that keeps each element as it is finished; the same sweep with the same file goes on from there.
            Metrics are not compared: a new metric needs a new file.
        progress: called with (elements done, elements in all); True shows a bar.

    Raises:
        SiteError, EditError, InputError, UnsupportedError: before the first edited forward, as `Inspector.run` does for
            each element.
    """
    ready = _Sweep(lens, inputs, edits, metric, logits_at, max_rows)
    if not edits:
        return torch.empty(0, ready.batch)
    store = None
    if out is not None:
        store = SweepStore(Path(out), facts_of(lens.name, weights_digest(lens.model), ready.ready, edits))
    found = {} if store is None else dict(store.found)
    with ExitStack() as undo:
        undo.callback(ready.close)
        if store is not None:
            undo.callback(store.close)
        told = undo.enter_context(progress_bar("edits", progress))
        for start, numbers in ready.groups(found):
            for part in ready.parts(start, numbers):
                new = dict(zip(part, ready.run(start, part), strict=True))
                if store is not None:
                    store.add(new)
                found.update(new)
                told(len(found), len(edits))
    return torch.stack([found[i] for i in range(len(edits))])


@dataclass(frozen=True)
class _Element:
    """Edits of one element, and the block that they begin at; None where only a forward of its own will do."""

    edits: list[Edit]
    start: int | None


class _Sweep:
    """One sweep: what is known of its elements, and the models that begin at a block."""

    def __init__(
        self, lens: Inspector, inputs: Any, edits: Sequence[Sequence[Edit]], metric: Metric,
        logits_at: Sequence[int] | None, max_rows: int | None,
    ) -> None:  # fmt: skip
        if max_rows is not None and max_rows < 1:
            raise InputError(f"max_rows is {max_rows}; a forward has at least one row")
        self.lens, self.inputs, self.metric = lens, inputs, metric
        self.ready: Inputs = lens._prepare(inputs)
        self.batch = self.ready.geometry.batch
        # everything is checked before anything runs
        self.visits = [lens._plan(self.ready, self.ready.geometry, (), element, None).visits for element in edits]
        self.columns = self._columns(logits_at)
        self.max_rows = max_rows
        self.together = self.ready.ids is not None and not lens.model.training and bool(lens.capabilities["edit.rows"])
        self.elements = [self._element(list(element)) for element in edits]
        self.states: dict[int, Tensor] = {}  # block -> what enters it
        self.plain: Tensor = torch.empty(0)  # the logits without edits, where the metric reads them
        self.first: dict[int, int] = {}  # element -> the first column that it changes; empty where that is no help
        self.stored: Stored = {}  # by block: keys and values without edits
        self.tail: Tail | None = None
        self.no_tail = False

    # ---- which elements run together

    def groups(self, done: Collection[int]) -> list[tuple[int | None, list[int]]]:
        """Block -> the elements that begin there, but for those done; those that run alone come last."""
        by_start: dict[int | None, list[int]] = {}
        for i, element in enumerate(self.elements):
            if i not in done:
                by_start.setdefault(element.start, []).append(i)
        self._look([i for start, numbers in by_start.items() if start is not None for i in numbers])
        for numbers in by_start.values():  # those that are cut alike run together
            numbers.sort(key=lambda i: self.first.get(i, 0))
        return sorted(by_start.items(), key=lambda item: (item[0] is None, item[0] or 0))

    def parts(self, start: int | None, numbers: list[int]) -> list[list[int]]:
        """Elements of one group in the order of forwards, as many at once as memory holds."""
        size = 1 if start is None else max(1, self._rows() // self.batch)
        still = [i for i in numbers if self._still(i)]
        moving = [i for i in numbers if not self._still(i)]
        return ([still] if still else []) + [moving[i : i + size] for i in range(0, len(moving), size)]

    def _look(self, numbers: list[int]) -> None:
        """Store what enters the blocks that these elements begin at, and see from which column on each does anything.

        That is of use in a causal model alone, and positions are columns only where no row is padded.
        """
        names = {start: f"blocks.{start}.resid_pre" for i in numbers if (start := self.elements[i].start)}
        sites = {visit.site.name for i in numbers for visit in self.visits[i]}
        try:
            self.lens._plan(self.ready, self.ready.geometry, sites, (), None)
        except UnsupportedError:  # a site that can be edited and not read
            sites = set()
        if self.ready.ids is None or not self.ready.geometry.plain or self.ready.geometry.columns < 2:
            sites = set()
        if not names and not sites:
            return
        run = self.lens.run(self.inputs, capture=[*dict.fromkeys((*names.values(), *sorted(sites)))])
        self.states = {start: run[name] for start, name in names.items()}
        self.plain = self._read(run.logits, 1)
        if sites and self._is_causal(run.logits):
            self.first = {i: first_change(self.visits[i], self.ready.geometry, run) for i in numbers}

    def _is_causal(self, logits: Tensor) -> bool:
        """Whether half the inputs alone give what they give before the other half."""
        half = logits.shape[1] // 2
        got = self.lens.run({name: tensor[:, :half] for name, tensor in self._repeated(1).items()}).logits
        return _close(got, logits[:, :half])

    def _still(self, i: int) -> bool:
        """Whether an element changes nothing that the metric reads."""
        last = self.ready.geometry.columns - 1 if self.columns is None else int(self.columns.max())
        return self.first.get(i, 0) > last

    def _element(self, edits: list[Edit]) -> _Element:
        last = self.lens.architecture.sizes.get("n_layers", 1) - 1
        found = [(edit, site) for edit in edits for site in self.lens.architecture.sites.resolve(edit.site)]
        if not self.together or any(_alone(edit, site) for edit, site in found):
            return _Element(edits, None)
        return _Element(edits, min((_start(site, last) for _, site in found), default=last))

    def _rows(self) -> int:
        """Rows of a forward that a part of the free memory holds."""
        if self.max_rows is not None:
            return self.max_rows
        sizes, columns = self.lens.architecture.sizes, self.ready.geometry.columns
        kept = columns if self.columns is None else self.columns.shape[1]
        width = 8 * sizes["d_model"] + 3 * sizes["d_mlp"] + 2 * sizes["head"] * columns
        bytes_a_row = 4 * max(self.lens._dtype.itemsize, 4) * (columns * width + 3 * kept * sizes.get("d_vocab", 0))
        device = self.lens._device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return int(min(MOST_ROWS, max(1, SHARE_OF_MEMORY * free // bytes_a_row)))

    def _columns(self, positions: Sequence[int] | None) -> Tensor | None:
        """(batch, n) columns of the logits that the metric reads; None for all."""
        if positions is None:
            return None
        geometry = self.ready.geometry
        if geometry.position is None:
            raise InputError("logits_at= needs a language model of a known family")
        lengths = torch.tensor(geometry.lengths)[:, None]
        wanted = torch.tensor(list(positions), dtype=torch.long)[None].expand(self.batch, -1)
        wanted = torch.where(wanted < 0, wanted + lengths, wanted)
        if bool(((wanted < 0) | (wanted >= lengths)).any()) or not wanted.shape[1]:
            raise InputError(f"logits_at={list(positions)}: rows have {geometry.lengths} tokens; name positions in all")
        return geometry.columns_of(wanted, None)

    # ---- running

    def run(self, start: int | None, part: list[int]) -> list[Tensor]:
        """The metric of each element of one forward."""
        if start is None:
            return [self._alone(self.elements[i].edits) for i in part]
        if self._still(part[0]):
            return [self._value(self.plain) for _ in part]
        logits = self._from_block(start, part) if start else None
        if logits is None:
            edits = [moved for row, i in enumerate(part) for moved in self._moved(row, i, 0)]
            logits = self._read(self.lens.run(self._repeated(len(part)), edits=edits).logits, len(part))
        return [self._value(each) for each in logits.view(len(part), self.batch, *logits.shape[1:])]

    def _from_block(self, start: int, numbers: list[int]) -> Tensor | None:
        """Logits that the metric reads, from a run that begins at a block; None where there is none that is right."""
        while (tail := self._tail(start)) is not None:
            cut = min(self.first.get(i, 0) for i in numbers)
            try:
                edits = [moved for row, i in enumerate(numbers) for moved in self._moved(row, i, cut)]
                logits = self._run(tail, edits, len(numbers) + 1, start, cut)
                if _close(logits[-self.batch :], self.plain):
                    return logits[: -self.batch]
            except REFUSALS:
                pass
            self.no_tail = not self.first  # once more with all columns, then never again
            self.first = {}
        return None

    def _run(self, tail: Tail, edits: list[Edit], times: int, start: int, cut: int) -> Tensor:
        """Logits that the metric reads of so many copies; before the cut they are the plain ones."""
        inputs, state = self._repeated(times, cut), self.states[start]
        if not cut:
            return tail.run(inputs, edits, Part(start, state, times, self.columns))
        wanted = torch.arange(self.ready.geometry.columns) if self.columns is None else self.columns[0]
        late = (wanted >= cut).nonzero().flatten()
        columns = (wanted[late] - cut).expand(self.batch, -1)
        logits = self.plain.repeat(times, 1, 1)
        logits[:, late] = tail.run(inputs, edits, Part(start, state, times, columns, cut, self.stored))
        return logits

    def _tail(self, start: int) -> Tail | None:
        """The model that can begin at a block; at the first call, which has the lowest, keys and values are stored."""
        if self.tail is None and not self.no_tail:
            self.tail = tail_of(self.lens)
            self.no_tail = self.tail is None
            if self.tail is not None and self.first:
                try:
                    self.stored = self.tail.keep(self._repeated(1), Part(start, self.states[start]))
                except REFUSALS:
                    self.stored = {}
                self.first = self.first if self.stored else {}
        return None if self.no_tail else self.tail

    def _alone(self, edits: list[Edit]) -> Tensor:
        run = self.lens.run(self.inputs, edits=edits)
        known = isinstance(getattr(run.output, "logits", None), Tensor)
        return self._value(self._read(run.logits if known else run.output, 1))

    def _value(self, logits: Tensor) -> Tensor:
        value = self.metric(logits)
        if not isinstance(value, Tensor) or value.shape != (self.batch,):
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the metric returned {shown}; it must return one number a row, ({self.batch},)")
        return value.detach()

    def _read(self, logits: Tensor, times: int) -> Tensor:
        """The columns that the metric reads."""
        if self.columns is None:
            return logits
        columns = self.columns.repeat(times, 1).to(logits.device)
        return logits[torch.arange(len(columns), device=logits.device)[:, None], columns]

    def _repeated(self, times: int, cut: int = 0) -> dict[str, Tensor]:
        """The inputs, `times` over, from a column on."""
        names = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
        given = {name: self.ready.kwargs[name] for name in names if name in self.ready.kwargs}
        if cut:
            given.setdefault("position_ids", torch.arange(self.ready.geometry.columns, device=self.lens._device)[None])
        return {name: tensor.expand(self.batch, -1).repeat(times, 1)[:, cut:] for name, tensor in given.items()}

    def _moved(self, row: int, number: int, cut: int) -> list[Edit]:
        """An element's edits in its own rows of the batch, in the columns that are left."""
        out = []
        for edit in self.elements[number].edits:
            late = _from(edit, cut, self.ready.geometry.columns) if cut else edit
            if late is not None:
                rows = range(self.batch) if edit.rows is None else _numbers(edit.rows, self.batch)
                out.append(replace(late, rows=[row * self.batch + r for r in rows]))
        return out

    def close(self) -> None:
        """Give the tail's inspector back."""
        if self.tail is not None:
            self.tail.close()
            self.tail = None


def _close(got: Tensor, want: Tensor) -> bool:
    """Equal to rounding."""
    return torch.allclose(got, want, rtol=0, atol=32 * torch.finfo(want.dtype).eps * float(want.abs().max()))


def _from(edit: Edit, cut: int, columns: int) -> Edit | None:
    """What an edit does from a column on, counted from there; None for nothing."""
    if edit.positions is None:
        value = edit.value[:, cut:] if isinstance(edit.value, Tensor) else edit.value
        return replace(edit, value=value)
    at = _numbers(edit.positions, columns)
    kept = [i for i, position in enumerate(at) if position >= cut]
    value = edit.value[:, kept] if isinstance(edit.value, Tensor) else edit.value
    return replace(edit, value=value, positions=[at[i] - cut for i in kept]) if kept else None


def _start(site: Site, last: int) -> int:
    """The first block that an edit there can reach; what one block leaves is what the next begins with."""
    if site.name == "embed":
        return 0
    if site.layer is None:
        return last
    return min(site.layer + 1, last) if site.local == "resid_post" else site.layer


def _alone(edit: Edit, site: Site) -> bool:
    """Whether an edit needs a forward of its own: a function may mix the rows that it is given, and see any tensor."""
    return edit.kind == "apply" or site.kind != "canonical" or site.name == "logits"


def _numbers(rows: Any, size: int) -> list[int]:
    """A checked selection of rows as numbers."""
    if isinstance(rows, slice):
        return list(range(*rows.indices(size)))
    if isinstance(rows, Tensor):
        rows = rows.flatten().tolist()
    return [int(r) % size for r in ([rows] if isinstance(rows, int) else rows)]
