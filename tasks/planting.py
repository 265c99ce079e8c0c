"""Differences of known kind, place and size, planted in one category of a comparison: a truth to measure methods by.

    edits = plant("variance", "blocks.1.resid_post", 0.1)
    result = compare_planted(lens, examples, {"sick": edits}, sites="blocks.*.resid_post")

A planted difference acts at one site, and through it on all that is computed from it: see `affected`. Of the kinds in
`GRADIENT_KINDS` the forward feels nothing: they act on the way back, on the gradients of all that the site is computed
from, see `affected_gradients`; in a training loop `fault` plants them.

    with recorder.step(category="sick"), fault(model.model.layers[1], "exploding", 2.0):
        loss = criterion(model(batch))
        loss.backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from crosslens.adapters import InputError, Inspector, Site, SiteError
from crosslens.adapters.architectures import Architecture
from crosslens.adapters.edits import Edit, apply, scale

from .compare import compare
from .comparison import Comparison

if TYPE_CHECKING:
    from crosslens.adapters.plan import Look

KINDS: dict[str, str] = {
    "mean": "adds `size` standard deviations of each vector to all its elements",
    "variance": "multiplies the deviations of each vector from its mean by 1 + `size`",
    "tail": "adds `size` standard deviations of each vector to two of its elements, drawn by the seed",
    "dead": "sets a share `size` of the units, drawn by the seed, to 0",
    "direction": "turns each vector by up to `size` radians about the direction of ones: its norm and mean stay",
    "attention": "moves a share `size` of what each query pays to all keys to the first token; at attn.pattern",
    "nan": "sets a share `size` of the units, drawn by the seed, to NaN",
    "exploding": "multiplies the gradient that flows back through the site by 1 + `size`",
    "vanishing": "divides the gradient that flows back through the site by 1 + `size`",
}
"""What `plant` can plant. A vector is all units of one token at the site; at least one unit is chosen of a share."""

GRADIENT_KINDS = ("exploding", "vanishing")
"""Kinds that leave the forward as it is."""
_SHARES = ("dead", "attention", "nan")


def plant(kind: str, site: str, size: float, *, seed: int = 0) -> list[Edit]:
    """Edits that make a difference at one site: for the examples of one category, on any backend that can `apply`.

    Args:
        kind: of `KINDS`.
        site: a canonical site with a token axis; for "attention" an attention pattern.
        size: above 0; in the unit of the kind. A share is at most 1.
        seed: of the choice of units, and of the planes of the rotation.

    Raises:
        InputError: no such kind, a size out of range, or a site at which the kind means nothing.
    """
    _check(kind, KINDS, size)
    if kind in _SHARES and size > 1:
        raise InputError(f"size is {size}; of kind {kind!r} it is a share, at most 1")
    if kind in GRADIENT_KINDS:
        factor = _factor(kind, size)
        return [apply(site, lambda tensor: _throttled(tensor, factor))]
    if (kind == "attention") != site.endswith("attn.pattern"):
        raise InputError(
            f"{kind!r} cannot be planted at {site!r}: of kinds that change the forward 'attention', and no other, acts "
            "at attn.pattern"
        )
    if kind == "attention":
        return [scale(site, 1.0 - size), apply(site, lambda pattern: pattern + size, units=[0])]
    change = _CHANGES[kind]

    def edit(tensor: Tensor) -> Tensor:
        vectors = tensor.flatten(2)
        return change(vectors, float(size), seed).to(tensor.dtype).reshape(tensor.shape)

    return [apply(site, edit)]


def affected(lens: Inspector | Architecture, site: str) -> list[str]:
    """Canonical sites that a difference planted at one can reach: itself, and all that is computed from it.

    Of two sites the later in the order of execution is computed from the earlier, but for those side by side: q, k
    and v of one block, and in blocks whose attention and MLP both read the block's input, attention and MLP.

    Raises:
        SiteError: no canonical site of the model.
    """
    table = _table(lens)
    if site not in table:
        raise SiteError(f"{site!r} is no canonical site of this model; there are {', '.join(list(table)[:4])} ...")
    start = table[site]
    parallel = any(other.layer == 0 and other.local == "attn.out" for other in table.values()) and not any(
        other.local == "resid_mid" for other in table.values()
    )
    found = []
    for other in table.values():
        beside = other.layer == start.layer is not None and (
            {start.local, other.local} <= {"attn.q", "attn.k", "attn.v"}
            or (start.local == "attn.v" and other.local == "attn.pattern")
            or (parallel and start.local.startswith("attn.") and other.local.startswith("mlp."))
        )
        if other.order == start.order or (other.order > start.order and not beside):
            found.append(other.name)
    return found


def affected_gradients(lens: Inspector | Architecture, site: str) -> list[str]:
    """Canonical sites whose gradient a fault at one reaches: all that it is computed from, in the order of execution.

    The gradient at the site itself is what came, before the fault.

    Raises:
        SiteError: no canonical site of the model.
    """
    affected(lens, site)  # which refuses what is no site
    return [name for name in _table(lens) if name != site and site in affected(lens, name)]


@contextmanager
def fault(module: nn.Module, kind: str, size: float) -> Iterator[None]:
    """A training pathology: inside, what flows back through the output of a module grows or shrinks.

    The forward is the same to the bit. The gradient at the module's output, as hooks on it and a `Recorder` see it, is
    what came; its parameters, and all that its output is computed from, get what is left of it.

    Args:
        module: any whose output is a tensor, or holds tensors.
        kind: of `GRADIENT_KINDS`.
        size: as of `plant`.

    Raises:
        InputError: no such kind, or a size out of range.
    """
    _check(kind, GRADIENT_KINDS, size)
    factor = _factor(kind, size)

    def back(_: nn.Module, __: Any, output: Any) -> Any:
        return tree_map(lambda each: _throttled(each, factor) if isinstance(each, Tensor) else each, output)

    handle = module.register_forward_hook(back, prepend=True)
    try:
        yield
    finally:
        handle.remove()


class _Planted:
    """An inspector of which every forward that a comparison watches is edited."""

    def __init__(self, lens: Inspector, edits: Sequence[Edit]) -> None:
        self._lens, self._edits = lens, edits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lens, name)

    def watch(self, inputs: Any, sites: Iterable[str], look: Look) -> None:
        """As `Inspector.watch`, of copies that the edits have passed through."""
        run = self._lens.run(inputs, capture=list(sites), edits=self._edits)
        for name, tensor in run.items():
            look(name, tensor)


def planted(lens: Inspector, edits: Iterable[Edit]) -> Inspector:
    """The inspector as `compare` takes it, with every forward edited."""
    return cast(Inspector, _Planted(lens, list(edits)))


def compare_planted(
    lens: Inspector, examples: Sequence[Mapping[str, Any]], edits: Mapping[str, Sequence[Edit]], **options: Any
) -> Comparison:
    """`compare`, with the examples of some categories run under edits.

    Args:
        lens: an open inspector.
        examples: mappings with text and category.
        edits: by category; the others run as they are.
        options: of `compare`, but for those that concern files and columns.

    Raises:
        InputError: a category that no example has, an option that cannot be used here, or as `compare`.
    """
    for name in ("out", "resume", "shard", "categories", "text", "pair"):
        if name in options:
            raise InputError(f"compare_planted() has no option {name!r}: it runs each category by itself, in memory")
    by_category: dict[str, list[Mapping[str, Any]]] = {}
    for example in examples:
        by_category.setdefault(str(example.get("category")), []).append(example)
    if missing := [name for name in edits if name not in by_category]:
        raise InputError(f"no example has the category {missing[0]!r}; there are {', '.join(by_category) or 'none'}")
    parts = [
        compare(planted(lens, edits[name]) if name in edits else lens, group, **options)
        for name, group in by_category.items()
    ]
    if not parts:
        raise InputError("there are no examples")
    return reduce(Comparison.merge, parts)


def _table(lens: Inspector | Architecture) -> Mapping[str, Site]:
    return (lens.architecture if isinstance(lens, Inspector) else lens).sites.canonical


def _check(kind: str, kinds: Iterable[str], size: float) -> None:
    if kind not in kinds:
        raise InputError(f"there is no kind {kind!r} of planted difference here; there are {', '.join(kinds)}")
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < math.inf:
        raise InputError(f"size is {size!r}; it must be a finite number above 0")


# ---- the way back


class _Throttle(torch.autograd.Function):
    """A copy of what it is given; of a gradient, a multiple."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.clone()  # a view could not be changed in place by what comes after

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.factor, None


def _throttled(tensor: Tensor, factor: float) -> Tensor:
    return cast(Tensor, _Throttle.apply(tensor, factor)) if tensor.is_floating_point() else tensor  # type: ignore[no-untyped-call]


def _factor(kind: str, size: float) -> float:
    return 1.0 + size if kind == "exploding" else 1.0 / (1.0 + size)


# ---- what each kind does to vectors (batch, pos, d)


def _mean(x: Tensor, size: float, seed: int) -> Tensor:
    return x + size * _spread(x)


def _variance(x: Tensor, size: float, seed: int) -> Tensor:
    centre = x.mean(-1, keepdim=True)
    return centre + (1 + size) * (x - centre)


def _tail(x: Tensor, size: float, seed: int) -> Tensor:
    out = x.clone()
    out[..., _units(x, 2, seed)] += size * _spread(x)
    return out


def _dead(x: Tensor, size: float, seed: int) -> Tensor:
    return _set(x, size, seed, 0.0)


def _nan(x: Tensor, size: float, seed: int) -> Tensor:
    return _set(x, size, seed, math.nan)


def _direction(x: Tensor, size: float, seed: int) -> Tensor:
    turn = torch.from_numpy(_rotation(x.shape[-1], size, seed))
    return x.double() @ turn.to(x.device).T


def _spread(x: Tensor) -> Tensor:
    return x.std(-1, correction=0, keepdim=True)


def _units(x: Tensor, count: int, seed: int) -> list[int]:
    width = x.shape[-1]
    return list(np.random.default_rng(seed).choice(width, min(max(1, count), width), replace=False).tolist())


def _set(x: Tensor, share: float, seed: int, value: float) -> Tensor:
    out = x.clone()
    out[..., _units(x, round(share * x.shape[-1]), seed)] = value
    return out


@lru_cache(maxsize=8)
def _rotation(width: int, angle: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(width, width) rotation by `angle` in each of (width - 1) // 2 random planes that are orthogonal to the ones."""
    first = np.ones((width, 1)) / math.sqrt(width)
    drawn = np.random.default_rng(seed).standard_normal((width, width - 1))
    basis = np.linalg.qr(np.concatenate([first, drawn], axis=1))[0]
    turn = np.eye(width)
    for i in range(1, width - 1, 2):
        turn[i : i + 2, i : i + 2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return np.asarray(basis @ turn @ basis.T)


_CHANGES: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "mean": _mean, "variance": _variance, "tail": _tail, "dead": _dead, "direction": _direction, "nan": _nan,
}  # fmt: skip
