"""The oracle: what a forward pass, an edit, a gradient and greedy generation are, by definition.

It is written to be checked by eye and is slow on purpose: float64, no cache, no hooks, no backend.
`families.py` states the sites of llama, gpt2 and gpt_neox; this module states what it means to edit one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from crosslens.adapters.conformance.families import FAMILIES, read_model
from crosslens.adapters.errors import EditError, InputError, ModelError, SiteError

T = TypeVar("T")

KINDS = ("replace", "add", "scale", "zero", "apply")


class EditLike(Protocol):
    """The attributes of an edit; `crosslens.adapters.replace` and its sisters make such objects.

    `value` is a tensor of the shape of the selected slice for replace and add, a number or such a tensor for
    scale, None for zero, and for apply a function from the slice to a tensor of its shape. `rows`,
    `positions`, `heads` and `units` are None (everything) or a sequence of ints, where negative ones count
    from the end; `steps`, for `Oracle.generate`, is None or a sequence of ints:
    - `positions` are logical: position p of a row is its p-th real token, -1 its last, however it is padded;
    - `heads` count kv heads at `attn.k` and `attn.v`;
    - `units` count along the last axis; at `attn.pattern` they are keys, as logical positions.
    A selected axis is kept, in the order of the selection; an axis not selected is whole, padding included.
    """

    @property
    def kind(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def value(self) -> Any: ...
    @property
    def rows(self) -> Any: ...
    @property
    def positions(self) -> Any: ...
    @property
    def heads(self) -> Any: ...
    @property
    def units(self) -> Any: ...
    @property
    def steps(self) -> Any: ...


@dataclass(frozen=True)
class OracleRun:
    """One forward pass: each site's tensor after edits, in float64. They may share memory: only read them."""

    sites: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """(batch, pos, d_vocab)"""
        return self.sites["logits"]


class Oracle:
    """A float64 forward pass of a llama, gpt2 or gpt_neox language model, dropout off.

    Args:
        model: a Hugging Face causal language model. Its weights are copied to float64 once, here; it is never
            run and never changed, and later changes to it do not reach the oracle.
        attn_implementation: "eager" or "sdpa"; None means the one that the model's config names.
        islands: Hugging Face code computes some things in float32 even in a float64 model: llama's RMSNorm,
            the rotary table of cos and sin (llama, gpt_neox), and the softmax of their `eager` attention
            (`sdpa` has none). These islands are part of what the model is, and move its logits by a relative
            1e-7 or so. With "hf" the oracle computes the same islands in the same precision and agrees with
            the plain model to 1e-10; with None it is float64 throughout, the mathematics without them: for
            finite differences, and for telling rounding from error.

    Raises ModelError for an unknown family and for every option that would make the oracle silently wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attn_implementation: str | None = None,
        islands: Literal["hf"] | None = "hf",
    ) -> None:
        self._decoder = read_model(model, attn_implementation, islands)
        self._forward = FAMILIES[self._decoder.config.model_type]
        self._device = next(iter(self._decoder.weights.tensors.values())).device
        # A run on one token shows which sites the model has, and whether it has weights that no site needs.
        self.sites: tuple[str, ...] = ()
        self.sites = tuple(self.run(torch.zeros(1, 1, dtype=torch.int64)).sites)
        unread = self._decoder.weights.tensors.keys() - self._decoder.weights.read
        if unread:
            raise ModelError(
                f"no plain {self._forward.__name__} model has the weights {', '.join(sorted(unread))}, "
                "and the oracle states plain models only"
            )

    def run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        edits: Sequence[EditLike] = (),
        requires_grad: bool = False,
    ) -> OracleRun:
        """One forward pass with the edits applied.

        Args:
            input_ids: (batch, pos), padded on either side.
            attention_mask: (batch, pos), 1 at real tokens, 0 at padding; None means that all are real.
            edits: applied in the given order where they share a site.
            requires_grad: keep the graph, so that `torch.autograd.grad` works from any site to any later one.

        At padding the result is finite and means nothing. Raises InputError, SiteError or EditError.
        """
        tokens, mask = self._check_inputs(input_ids, attention_mask)
        return self._run(tokens, _Layout.of(mask, prompt=tokens.shape[1], steps=1), mask, edits, requires_grad)

    def gradients(
        self,
        input_ids: Tensor,
        sites: Sequence[str],
        metric: Callable[[Tensor], Tensor],
        attention_mask: Tensor | None = None,
        edits: Sequence[EditLike] = (),
    ) -> dict[str, Tensor]:
        """d metric / d site for each of `sites`, at its value after edits; zeros where it has no effect.

        `metric` maps logits (batch, pos, d_vocab) to a scalar or to (batch,), which is summed.
        """
        self._check_sites(sites)
        with torch.enable_grad():
            run = self.run(input_ids, attention_mask, edits, requires_grad=True)
            tensors = [run.sites[name] for name in sites]
            found = torch.autograd.grad(metric(run.logits).sum(), tensors, allow_unused=True)
        return {
            name: torch.zeros_like(tensor) if grad is None else grad
            for name, tensor, grad in zip(sites, tensors, found, strict=True)
        }

    def generate(
        self,
        input_ids: Tensor,
        n: int,
        attention_mask: Tensor | None = None,
        edits: Sequence[EditLike] = (),
    ) -> tuple[Tensor, OracleRun]:
        """Greedy generation of `n` >= 1 tokens, each from a full forward pass over everything before it.

        Nothing ends a row early. Step 0 brings the prompt's positions into being, step s >= 1 the position of
        the s-th generated token. What changes for an edit:
        - a position is an index into the row's prompt and continuation; a negative one counts from the end of
          its prompt;
        - `positions=None` is every position, and a value has size 1 on the position axis: it is repeated;
        - `steps` keeps the edit to the positions that came into being at those steps;
        - `apply` is called once for each step with the slice that came into being there, or once for each of
          its rows if their positions there differ;
        - at `attn.pattern` the keys of a query are those that existed at its step.

        Returns: tokens (batch, prompt + n), and the run over all of them but the last.
        """
        if n < 1:
            raise InputError(f"n must be at least 1, not {n}")
        tokens, mask = self._check_inputs(input_ids, attention_mask)
        prompt = tokens.shape[1]
        while True:
            layout = _Layout.of(mask, prompt, steps=n, generating=True)
            run = self._run(tokens, layout, mask, edits)
            # The last real token of a row stands at the end of its padding on the left, not on the right.
            last = torch.stack([run.logits[row, columns[-1]] for row, columns in enumerate(layout.real)])
            tokens = torch.cat([tokens, last.argmax(dim=-1, keepdim=True)], dim=1)  # (batch, pos + 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            if tokens.shape[1] == prompt + n:
                return tokens, run

    def _check_sites(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.sites:
                raise SiteError(f"this model has no site {name!r}; it has {', '.join(self.sites)}")

    def _check_inputs(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if input_ids.ndim != 2 or input_ids.dtype not in (torch.int32, torch.int64) or not input_ids.numel():
            raise InputError(
                "input_ids must be int64 or int32 of shape (batch, pos), "
                f"not {input_ids.dtype} of shape {tuple(input_ids.shape)}"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape or not ((mask == 0) | (mask == 1)).all() or not (mask == 1).any(1).all():
            raise InputError(
                f"attention_mask must be 0 or 1, of shape {tuple(input_ids.shape)}, with a 1 in each row; "
                f"its shape is {tuple(mask.shape)}"
            )
        return input_ids.to(self._device, torch.int64), mask.to(self._device, torch.bool)

    def _run(
        self,
        tokens: Tensor,
        layout: _Layout,
        mask: Tensor,
        edits: Sequence[EditLike],
        requires_grad: bool = False,
    ) -> OracleRun:
        self._check_sites([edit.site for edit in edits])
        sites: dict[str, Tensor] = {}

        def site(name: str, x: Tensor) -> Tensor:
            for edit in edits:
                if edit.site == name:
                    x = apply_edit(edit, x, layout)
            if requires_grad and not x.requires_grad:
                x.requires_grad_()  # the embedding, or a site that an edit cut off from what came before
            sites[name] = x
            return x

        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)  # batch, pos
        width = tokens.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self._device).tril()  # query, key
        itself = torch.eye(width, dtype=torch.bool, device=self._device)
        # A padded query sees at least itself: its softmax is then defined, and no real query reads it.
        visible = (causal & mask[:, None, :]) | itself  # batch, query, key
        with torch.set_grad_enabled(requires_grad):
            self._forward(self._decoder, tokens, positions, visible, site)
        return OracleRun(sites)


# --- what an edit is -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Where each row's logical positions stand in the batch, and which step brought each column about."""

    real: list[list[int]]  # row -> the columns of its real tokens: logical position p stands at real[row][p]
    prompts: list[int]  # row -> how many of them are the prompt
    columns: list[range]  # step -> the columns that it brought into being, for the steps until now
    steps: int  # how many steps there will be
    generating: bool

    @classmethod
    def of(cls, mask: Tensor, prompt: int, steps: int, generating: bool = False) -> _Layout:
        rows = [[column for column, here in enumerate(row) if here] for row in mask.tolist()]
        return cls(
            real=rows,
            prompts=[sum(column < prompt for column in row) for row in rows],
            columns=[range(prompt), *(range(column, column + 1) for column in range(prompt, mask.shape[1]))],
            steps=steps,
            generating=generating,
        )

    def find(self, edit: EditLike, row: int, position: int) -> int | None:
        """The column of a logical position of a row; None if it has yet to be generated."""
        index = position + self.prompts[row] if position < 0 else position
        if not 0 <= index < self.prompts[row] + self.steps - 1:
            raise EditError(
                f"{edit.kind} at {edit.site!r}: row {row} has no position {position}; its positions are "
                f"0 to {self.prompts[row] + self.steps - 2}"
            )
        return self.real[row][index] if index < len(self.real[row]) else None


def axes_of(site: str) -> tuple[str, ...]:
    """What each axis of a site's tensor counts."""
    if site.endswith(".attn.pattern"):
        return ("row", "head", "position", "key")
    if site.endswith((".attn.q", ".attn.k", ".attn.v", ".attn.z")):
        return ("row", "position", "head", "unit")
    return ("row", "position", "unit")


def apply_edit(edit: EditLike, x: Tensor, layout: _Layout) -> Tensor:
    """`x`, the tensor at the edit's site, with the selected elements changed and all others as they were."""
    if edit.kind not in KINDS:
        raise EditError(f"edit kind {edit.kind!r} at {edit.site!r} is none of {', '.join(KINDS)}")
    for step in edit.steps or ():
        if not 0 <= step < layout.steps:
            raise EditError(f"{edit.kind} at {edit.site!r}: step {step} is not in 0 to {layout.steps - 1}")
    for step in range(len(layout.columns)):
        if edit.steps is None or step in edit.steps:
            places = _places(edit, x, layout, step)
            if not (places >= 0).any():
                continue
            for part in _rectangles(places) if edit.kind == "apply" else [places]:
                x = _write(edit, x, part, layout)
    return x


def _places(edit: EditLike, x: Tensor, layout: _Layout, step: int) -> Tensor:
    """The slice that `edit` selects among what came into being at `step`, as places in `x.flatten()`.

    The elements of `x` are numbered, and the slice is cut out of the numbers, one row after the other because
    a logical position stands in another column in each. A selected element that did not come into being at
    this step is numbered -1.
    """
    axes = axes_of(edit.site)
    if edit.heads is not None and "head" not in axes:
        raise EditError(f"{edit.kind} at {edit.site!r}: the site has no head axis, only {', '.join(axes)}")
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    selected = {"head": edit.heads, "unit": edit.units, "position": edit.positions, "key": edit.units}
    columns = layout.columns[step]
    here = {"position": columns, "key": range(columns.stop)}  # the columns that each axis has at this step

    slices = []
    for row in _indices(edit, "row", edit.rows, x.shape[0]):
        part = numbers[row : row + 1]  # 1, then the other axes of the site
        for axis, kind in enumerate(axes[1:], start=1):
            chosen: list[int | None]
            if kind not in here:
                chosen = [*_indices(edit, kind, selected[kind], x.shape[axis])]
            elif selected[kind] is None:
                chosen = [*here[kind]]
            else:
                found = _distinct(edit, kind, [layout.find(edit, row, p) for p in selected[kind]])
                chosen = [column if column in here[kind] else None for column in found]
            part = _pick(part, axis, chosen)
        slices.append(part)
    return torch.cat(slices)


def _indices(edit: EditLike, kind: str, selected: Sequence[int] | None, size: int) -> list[int]:
    """A selection of rows, heads or units as indices from 0."""
    if selected is None:
        return [*range(size)]
    for index in selected:
        if not -size <= index < size:
            raise EditError(f"{edit.kind} at {edit.site!r}: {kind} {index} is not in {-size} to {size - 1}")
    return _distinct(edit, kind, [index % size for index in selected])


def _distinct(edit: EditLike, kind: str, chosen: list[T]) -> list[T]:
    known = [index for index in chosen if index is not None]
    if not chosen or len(set(known)) < len(known):
        wrong = f"names one {kind} twice" if chosen else f"names no {kind}"
        raise EditError(f"{edit.kind} at {edit.site!r}: the selection {wrong}")
    return chosen


def _pick(numbers: Tensor, axis: int, chosen: Sequence[int | None]) -> Tensor:
    """The chosen entries of one axis, in the order given; -1 throughout an entry that is None."""
    absent = torch.full_like(numbers.select(axis, 0), -1)
    return torch.stack([absent if i is None else numbers.select(axis, i) for i in chosen], dim=axis)


def _write(edit: EditLike, x: Tensor, places: Tensor, layout: _Layout) -> Tensor:
    """Change the elements of `x` at `places` (the shape of the slice) as the edit's kind says."""
    here = places >= 0
    old = x.flatten()[places.clamp(min=0)]  # the slice
    if edit.kind == "zero":
        new = torch.zeros_like(old)
    elif edit.kind == "apply":
        new = edit.value(old)
        if not isinstance(new, Tensor) or new.shape != old.shape:
            raise EditError(f"apply at {edit.site!r} must return a tensor of shape {tuple(old.shape)}")
    elif edit.kind == "scale" and not isinstance(edit.value, Tensor):
        new = old * edit.value
    else:
        value = _value(edit, old, layout)
        new = {"replace": value, "add": old + value, "scale": old * value}[edit.kind]
    return x.flatten().scatter(0, places[here], new.to(x)[here]).reshape(x.shape)


def _rectangles(places: Tensor) -> list[Tensor]:
    """What came into being at this step: one slice, or one for each row if it differs between the rows."""
    whole = _without_absent(places)
    if (whole >= 0).all():
        return [whole]
    rows = [places[row : row + 1] for row in range(places.shape[0])]
    return [_without_absent(row) for row in rows if (row >= 0).any()]


def _without_absent(places: Tensor) -> Tensor:
    """A slice that is present in part, without those entries of an axis that are absent throughout."""
    for axis in range(places.ndim):
        entries = [places.select(axis, i) for i in range(places.shape[axis])]
        places = torch.stack([entry for entry in entries if (entry >= 0).any()], dim=axis)
    return places


def _value(edit: EditLike, old: Tensor, layout: _Layout) -> Tensor:
    """The edit's value in the shape of the slice, or a plain EditError if it does not have that shape."""
    shape = list(old.shape)
    if layout.generating and edit.positions is None:
        shape[axes_of(edit.site).index("position")] = 1  # one value, for each position that comes into being
    if not isinstance(edit.value, Tensor) or list(edit.value.shape) != shape:
        got = tuple(edit.value.shape) if isinstance(edit.value, Tensor) else type(edit.value).__name__
        raise EditError(f"{edit.kind} at {edit.site!r} takes a tensor of shape {tuple(shape)}, not {got}")
    return edit.value.to(old).expand(old.shape)
