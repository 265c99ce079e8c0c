"""Figures of a corpus, one batch after another: two halves, two workers or two days merge to the same result.

`Moments` pools the elements of tensors; `UnitMoments` keeps each unit apart; `Quantiles` sketches distributions. All
merge, and are the same to rounding however a corpus is split and ordered (sketches: within their stated rank error).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from crosslens.adapters.errors import InputError

from .engine import KPIS, derive, fields
from .kernels import FIELDS, Array, empty, joined

SKETCH_K = 200
"""Size parameter of the sketches: ranks are right to about 1.3 % with 99 % confidence (Karnin et al. 2016)."""


class Moments:
    """Pooled figures of all elements seen.

    Attributes:
        fields: (fields,) sums, as `kernels.FIELDS` names them.
    """

    def __init__(self) -> None:
        self.fields: Array = empty(1)[0]
        self._distributions = False

    def update(self, tensor: Tensor, mask: Tensor | None = None, *, distributions: bool = False) -> None:
        """Add the elements of a tensor; arguments as of `engine.figures`."""
        self._distributions |= distributions
        for part in fields(tensor, mask, distributions, ()):
            self.fields = joined(self.fields, part)

    def merge(self, other: Self) -> Self:
        """Both together, as a new accumulator."""
        out = type(self)()
        out.fields = joined(self.fields, other.fields)
        out._distributions = self._distributions or other._distributions
        return out

    def figures(self) -> dict[str, float]:
        """KPI -> value over all elements."""
        return dict(zip(KPIS, derive(self.fields[None], self._distributions)[0].tolist(), strict=True))

    def to_state(self) -> dict[str, NDArray[Any]]:
        """Arrays that `from_state` takes."""
        return {"fields": self.fields, "distributions": np.array(self._distributions)}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]]) -> Self:
        """The accumulator that `to_state` wrote.

        Raises:
            InputError: the arrays are not those of this version.
        """
        out = cls()
        if set(state) != {"fields", "distributions"} or state["fields"].shape != (len(FIELDS),):
            raise InputError(f"no state of Moments: {sorted(state)}")
        out.fields, out._distributions = state["fields"].astype(np.float64), bool(state["distributions"])
        return out


class UnitMoments:
    """Mean and variance of each unit of the last axis, over all else.

    Args:
        units: size of the last axis.
    """

    def __init__(self, units: int) -> None:
        self.count: Array = np.zeros(units)
        self.mean: Array = np.zeros(units)
        self.m2: Array = np.zeros(units)

    def update(self, tensor: Tensor, mask: Tensor | None = None) -> None:
        """Add a tensor (..., units); elements outside the mask, and those that are not finite, take no part."""
        if tensor.shape[-1] != len(self.mean):
            raise InputError(f"the last axis has {tensor.shape[-1]} units; this accumulator keeps {len(self.mean)}")
        x = tensor.detach().double().flatten(0, -2) if tensor.ndim > 1 else tensor.detach().double()[None]
        seen = torch.isfinite(x)
        if mask is not None:
            seen &= mask.expand(tensor.shape).flatten(0, -2)
        count = seen.sum(0).double()
        mean = torch.where(seen, x, 0.0).sum(0) / count.clamp(min=1)
        m2 = torch.where(seen, x - mean, 0.0).square().sum(0)
        self._add(*(part.cpu().numpy() for part in (count, mean, m2)))

    def _add(self, count: Array, mean: Array, m2: Array) -> None:
        n = self.count + count
        share = np.divide(count, n, out=np.zeros_like(n), where=n > 0)
        d = mean - self.mean
        self.mean = self.mean + d * share
        self.m2 = self.m2 + m2 + d * d * self.count * share
        self.count = n

    def merge(self, other: Self) -> Self:
        """Both together, as a new accumulator."""
        out = type(self)(len(self.mean))
        for each in (self, other):
            out._add(each.count, each.mean, each.m2)
        return out

    def figures(self) -> dict[str, Array]:
        """`count`, `mean` and `variance` (dividing by count - 1, NaN below 2), (units,) each."""
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.where(self.count > 1, self.m2 / (self.count - 1), np.nan)
        return {"count": self.count, "mean": np.where(self.count > 0, self.mean, np.nan), "variance": variance}


class Quantiles:
    """KLL sketches of several distributions at once (Karnin et al. 2016, arXiv:1603.05346; Apache DataSketches).

    Args:
        size: number of distributions.
    """

    def __init__(self, size: int) -> None:
        import datasketches

        self._sketches: Any = [datasketches.kll_doubles_sketch(SKETCH_K) for _ in range(size)]

    def update(self, values: ArrayLike) -> None:
        """Add (n, size) values, one column a distribution; NaN and infinities take no part."""
        for sketch, column in zip(self._sketches, np.asarray(values, dtype=np.float64).T, strict=True):
            sketch.update(np.ascontiguousarray(column[np.isfinite(column)]))

    def merge(self, other: Self) -> Self:
        """Both together, as a new accumulator."""
        out = type(self)(len(self._sketches))
        for mine, *parts in zip(out._sketches, self._sketches, other._sketches, strict=True):
            for part in parts:
                mine.merge(part)
        return out

    def quantiles(self, ranks: Sequence[float]) -> Array:
        """(size, len(ranks)); NaN where nothing was seen."""
        empty_row = [float("nan")] * len(ranks)
        rows = [empty_row if each.is_empty() else each.get_quantiles(list(ranks)) for each in self._sketches]
        return np.array(rows, dtype=np.float64).reshape(len(self._sketches), len(ranks))

    def to_bytes(self) -> list[bytes]:
        """Each sketch in DataSketches' own portable form."""
        return [each.serialize() for each in self._sketches]

    @classmethod
    def from_bytes(cls, data: Sequence[bytes]) -> Self:
        """The sketches that `to_bytes` wrote."""
        import datasketches

        out = cls(0)
        out._sketches = [datasketches.kll_doubles_sketch.deserialize(each) for each in data]
        return out


def comgra_figures(tensor: Tensor) -> dict[str, float]:
    """comgra's own key figures of a tensor (batch, ...), by its formulae: first over each sample, then over the batch.

    `mean/batch_mean` and so on: `mean`, `abs_mean`, `std` (unbiased, 0 for one element) and `abs_max` of each sample,
    of which `batch_mean`, `batch_std` (unbiased, NaN for one sample) and `batch_abs_max` are taken. Beside the pooled
    figures, of which "std/batch_mean" is none: it is a mean of standard deviations (comgra 0.11.5).
    """
    x = tensor.detach().double().flatten(1) if tensor.ndim > 1 else tensor.detach().double()[:, None]
    each = {
        "mean": x.mean(1),
        "abs_mean": x.abs().mean(1),
        "std": x.std(1) if x.shape[1] > 1 else torch.zeros(len(x), dtype=torch.float64),
        "abs_max": x.abs().amax(1),
    }
    found = {}
    for name, value in each.items():
        found[f"{name}/batch_mean"] = float(value.mean())
        found[f"{name}/batch_std"] = float(value.std()) if len(value) > 1 else float("nan")
        found[f"{name}/batch_abs_max"] = float(value.abs().amax())
    return found
