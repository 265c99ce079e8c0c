"""From whatever the caller gives to the keyword arguments of the model's forward, and which column holds what.

Padding is decided here once for every backend: `position_ids` come from the mask, so a row gets the same positions
alone, left-padded or right-padded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError

_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Geometry:
    """Which logical position each column of one forward holds.

    Args:
        batch: number of rows; 0 where the inputs have no batch axis that crosslens knows.
        lengths: real prompt tokens of each row.
        position: (batch, columns) logical position of each column, -1 at padding; None where unknown.
        key_position: (batch, keys) the same for the keys that attention sees, cached ones included.
        step: generation step in which each column came into being.
        new_positions: generated positions that will be read by a later step.
        generating: whether this is part of a generation.
        plain: no padding, and column c holds position c.
    """

    batch: int
    lengths: Sequence[int]
    position: Tensor | None = None
    key_position: Tensor | None = None
    step: Sequence[int] = ()
    new_positions: int = 0
    generating: bool = False
    plain: bool = True

    @property
    def columns(self) -> int:
        """Number of columns of this forward."""
        return 0 if self.position is None else self.position.shape[1]

    def columns_of(self, positions: Tensor, rows: Sequence[int] | None, steps: Collection[int] | None = None) -> Tensor:
        """(rows, n) logical positions -> (rows, n) columns, -1 where this forward does not hold the position."""
        if self.plain and steps is None and not self.generating:
            return positions
        assert self.position is not None
        return _lookup(self.position, positions, rows, None if steps is None else self.columns_at(steps))

    def columns_at(self, steps: Collection[int]) -> list[int]:
        """Columns that came into being at one of the steps."""
        return [c for c, step in enumerate(self.step) if step in steps]

    def keys_of(self, positions: Tensor, rows: Sequence[int] | None) -> Tensor:
        """(rows, n) logical positions -> (rows, n) columns of the key axis."""
        if self.plain and not self.generating:
            return positions
        assert self.key_position is not None
        return _lookup(self.key_position, positions, rows, None)


def _lookup(table: Tensor, positions: Tensor, rows: Sequence[int] | None, only: Sequence[int] | None) -> Tensor:
    if rows is not None:
        table = table[list(rows)]
    hit = table[:, None, :] == positions[:, :, None]  # (rows, n, columns)
    if only is not None:
        keep = torch.zeros(table.shape[1], dtype=torch.bool)
        keep[list(only)] = True
        hit = hit & keep
    return torch.where(hit.any(-1), hit.int().argmax(-1), -1)


@dataclass(frozen=True)
class Inputs:
    """Inputs ready for the model.

    Args:
        args, kwargs: of the model's forward.
        geometry: which column holds what.
        mask: (batch, columns) 1 at real tokens, or None where no column is padding.
        ids: (batch, columns) token ids of a language model, else None.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    geometry: Geometry
    mask: Tensor | None = None
    ids: Tensor | None = None


def prepare(
    model: nn.Module, inputs: Any, tokenizer: Any, *, language: bool, vocab: int, limit: int | None, types: int = 0
) -> Inputs:
    """Check the inputs and turn them into the arguments of a forward.

    Args:
        model: the model; only its device is read.
        inputs: for a language model: a text, texts, token ids (batch, pos), or a mapping with `input_ids` and
            perhaps `attention_mask`, `position_ids` and `token_type_ids`. For any other module: a tensor, a tuple of
            arguments, or a mapping of keyword arguments.
        tokenizer: needed for texts only; never changed.
        language: whether the model is a language model of a known family.
        vocab: number of token ids.
        limit: largest number of positions, where positions are learned.
        types: number of token types; 0 where the model knows none.

    Raises:
        InputError: says what is wrong with the inputs and what would be right.
    """
    if not language:
        return _any_module(inputs)
    device = next(model.parameters()).device
    if isinstance(inputs, str) or (isinstance(inputs, list) and inputs and isinstance(inputs[0], str)):
        inputs = _tokenize([inputs] if isinstance(inputs, str) else inputs, tokenizer)
    if isinstance(inputs, Tensor):
        inputs = {"input_ids": inputs}
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise InputError(
            f"inputs are {type(inputs).__name__}; give a text, a list of texts, token ids (batch, pos), or a mapping "
            "with 'input_ids' and perhaps 'attention_mask'"
        )
    known = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
    if extra := set(inputs) - known:
        raise InputError(f"inputs have unknown keys {sorted(extra)}; a language model takes {sorted(known)}")
    # all that is decided by what they hold is decided on the CPU: no call need wait for a GPU to answer
    ids, mask = (_on_cpu(inputs.get(name)) for name in ("input_ids", "attention_mask"))
    _check_ids(ids, vocab)
    if mask is not None:
        _check_mask(mask, ids)
        mask = None if bool(mask.bool().all()) else mask.long()
    kwargs: dict[str, Any] = {"input_ids": ids.to(device), "use_cache": False}
    position_ids, token_types = inputs.get("position_ids"), inputs.get("token_type_ids")
    if position_ids is not None:
        _check_numbers("position_ids", position_ids, ids, limit)
    if token_types is not None:
        _check_numbers("token_type_ids", token_types, ids, max(types, 1))
        if types:  # a generic tokenizer gives zeros to models that have none
            kwargs["token_type_ids"] = token_types.to(device)
    if mask is not None:
        kwargs["attention_mask"] = mask.to(device)
        if position_ids is None:
            position_ids = positions_from_mask(mask).clamp(min=0)
    if position_ids is not None:
        kwargs["position_ids"] = position_ids.to(device)
    geometry = geometry_of(ids, mask)
    if limit is not None and (longest := max(geometry.lengths)) > limit:
        raise InputError(f"the longest row has {longest} tokens; this model has {limit} learned positions")
    return Inputs((), kwargs, geometry, kwargs.get("attention_mask"), kwargs["input_ids"])


def _on_cpu(given: Any) -> Any:
    return given.cpu() if isinstance(given, Tensor) else given


def geometry_of(ids: Tensor, mask: Tensor | None) -> Geometry:
    """Geometry of a prompt: (batch, columns) ids, and their mask unless no column is padding."""
    batch, columns = ids.shape
    if mask is None:
        position = torch.arange(columns).expand(batch, -1)
        return Geometry(batch, [columns] * batch, position, position, [0] * columns)
    position = positions_from_mask(mask).cpu()
    return Geometry(batch, mask.sum(1).tolist(), position, position, [0] * columns, plain=False)


def extend(geometry: Geometry, step: int, *, cached: bool) -> Geometry:
    """Geometry of the forward that reads the token made at `step - 1`: that token alone, or everything again."""
    assert geometry.key_position is not None
    new = (torch.tensor(geometry.lengths) + step - 1)[:, None]  # (batch, 1)
    keys = torch.cat([geometry.key_position, new], dim=1)
    if cached:
        return replace(geometry, position=new, key_position=keys, step=[step], plain=False)
    return replace(geometry, position=keys, key_position=keys, step=[*geometry.step, step])


def positions_from_mask(mask: Tensor) -> Tensor:
    """(batch, pos) mask -> logical position of each column, -1 at padding."""
    return torch.where(mask.bool(), mask.long().cumsum(-1) - 1, -1)


def model_mask(mask: Tensor, queries: int, dtype: torch.dtype, config: Any = None) -> Any:
    """What to give a causal Hugging Face model as `attention_mask` for the last `queries` columns of a padded batch.

    Usually the (batch, keys) mask itself. In float64, eager attention adds float64's lowest number and then takes a
    softmax in float32, where that is -inf: a padded query sees only -inf, and its NaN spreads through the values to
    every row's real tokens. There the additive (batch, 1, query, key) mask is made here, with float32's lowest number.

    Args:
        mask: (batch, keys), 1 at real tokens.
        queries: number of columns that are read.
        dtype: of the model.
        config: of the model; with a sliding window, only so many keys are seen, in all its layers or in some.
    """
    if dtype != torch.float64:
        return mask
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    whole = _additive(mask, queries, dtype)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return whole
    sliding = _additive(mask, queries, dtype, window)
    return {"full_attention": whole, "sliding_attention": sliding} if "full_attention" in kinds else sliding


def _additive(mask: Tensor, queries: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    keys = mask.shape[1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    if window is not None:  # a query and the keys just before it, `window` in all
        seen = seen.triu(keys - queries - window + 1)
    seen = seen & mask.bool()[:, None, None, :]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min).to(dtype)


def left_padded(inputs: Inputs) -> Inputs:
    """The same rows with their padding moved to the left, so that generation can append at the right.

    Raises:
        InputError: positions of the caller's own, which the tokens to come could not go on from.
    """
    given, counted = inputs.kwargs.get("position_ids"), inputs.geometry.position
    if given is not None and counted is not None:
        real = counted >= 0
        if not bool((given.cpu().expand_as(counted) == counted)[real].all()):
            raise InputError("generate() counts positions from the mask; leave position_ids out of the inputs")
    if inputs.mask is None or inputs.ids is None:
        return inputs
    order = inputs.mask.argsort(dim=1, stable=True)  # padding first, real tokens in their order
    ids, mask = inputs.ids.gather(1, order), inputs.mask.gather(1, order)
    kwargs = dict(inputs.kwargs, input_ids=ids, attention_mask=mask)
    kwargs["position_ids"] = inputs.kwargs["position_ids"].expand_as(order).gather(1, order)
    return replace(inputs, kwargs=kwargs, geometry=geometry_of(ids, mask), mask=mask, ids=ids)


def _tokenize(texts: list[str], tokenizer: Any) -> dict[str, Tensor]:
    """Each text by itself, padded here on the right: padding inside a tokenizer changes the tokenizer's own state."""
    if tokenizer is None:
        raise InputError("inputs are text, and no tokenizer was given; open_inspector(..., tokenizer=tokenizer)")
    if not all(isinstance(t, str) for t in texts):
        raise InputError("inputs mix texts with other things; give a list of texts only")
    rows = [list(tokenizer(text)["input_ids"]) for text in texts]
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise InputError(f"text {empty[0]} ({texts[empty[0]]!r}) has no tokens")
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _check_ids(ids: Any, vocab: int) -> None:
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in _INTEGERS:
        shown = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"token ids are {shown}; they must be an int64 tensor of shape (batch, pos)")
    if ids.numel() == 0:
        raise InputError(f"token ids of shape {tuple(ids.shape)} hold no token")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        raise InputError(f"token id {low if low < 0 else high} is out of range; the vocabulary has {vocab} tokens")


def _check_mask(mask: Any, ids: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        shown = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"attention_mask is {shown}; it must have the shape of input_ids, {tuple(ids.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("attention_mask must hold 0 (padding) and 1 (real token) only")
    if not bool(mask.bool().any(1).all()):
        row = int((~mask.bool().any(1)).nonzero()[0])
        raise InputError(f"attention_mask: row {row} is all padding")


def _check_numbers(name: str, numbers: Any, ids: Tensor, limit: int | None) -> None:
    """Numbers of each token, below `limit`; one row of them stands for all rows."""
    shapes = (tuple(ids.shape), (1, ids.shape[1]))
    if not isinstance(numbers, Tensor) or tuple(numbers.shape) not in shapes or numbers.dtype not in _INTEGERS:
        shown = f"{tuple(numbers.shape)} {numbers.dtype}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise InputError(f"{name} are {shown}; they must be int64 and have the shape of input_ids, {shapes[0]}")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (limit is not None and high >= limit):
        wrong = low if low < 0 else high
        raise InputError(
            f"{name} hold {wrong}; for this model they go from 0" + (f" to {limit - 1}" if limit else " up")
        )


def _any_module(inputs: Any) -> Inputs:
    if isinstance(inputs, Mapping):
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = (inputs if isinstance(inputs, tuple) else (inputs,)), {}
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    if not tensors:
        raise InputError(
            f"inputs are {type(inputs).__name__} without a tensor; give a tensor, a tuple of arguments, or a mapping "
            "of keyword arguments of the module's forward"
        )
    batch = tensors[0].shape[0] if tensors[0].ndim else 0
    return Inputs(tuple(args), kwargs, Geometry(batch, [0] * batch))
