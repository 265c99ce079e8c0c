"""What all key figures of a tensor cost: in one pass, as separate reductions, and beside a mere copy of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crosslens.tasks.engine import KPIS, figures

from .turns import WaysDifferError, calls, in_turns

EXAMPLES, UNITS = 8, 576
_COMPARED = 10  # the first key figures, which are of the size of the values; moments of higher order lose digits
_NEAR = 1e-3
_MOST_CALLS = 20


def separately(x: Tensor) -> Tensor:
    """The same figures by one PyTorch reduction each, in the tensor's own dtype: (batch, KPI)."""
    flat = x.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    sd = flat.std(1, correction=0)
    found = [
        torch.full((len(x),), float(flat.shape[1])), flat.mean(1), sd, flat.abs().mean(1), flat.square().mean(1).sqrt(),
        flat.abs().amax(1), flat.amin(1), flat.amax(1), (flat == 0).float().mean(1), x.norm(dim=-1).flatten(1).mean(1),
        torch.full((len(x),), torch.nan), centred.pow(3).mean(1) / sd**3, centred.pow(4).mean(1) / sd**4 - 3,
        flat.isnan().sum(1).float(), flat.isinf().sum(1).float(),
    ]  # fmt: skip
    return torch.stack(found, dim=-1)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of a call on random float32 tensors of 8 examples of 576 units at each position.

    Args:
        job: megabytes (of each tensor), rounds, repeat.

    Returns:
        kpis: how many key figures. sizes: for each tensor its megabytes, the largest difference of the two ways, and
        their samples.

    Raises:
        WaysDifferError: the two ways do not give the same figures.
    """
    sizes = []
    for size in job["megabytes"]:
        made = torch.Generator().manual_seed(job["repeat"])
        x = torch.randn(EXAMPLES, max(1, round(size * 1e6 / 4 / EXAMPLES / UNITS)), UNITS, generator=made)
        there = torch.empty_like(x)
        error = float((figures(x)[:, :_COMPARED] - separately(x)[:, :_COMPARED].double()).abs().max())
        if not error < _NEAR:
            raise WaysDifferError(f"key figures of {size:g} MB in one pass and one by one differ by {error:.2g}")
        often = min(_MOST_CALLS, max(1, int(_MOST_CALLS / size)))
        ways = {
            "one pass": calls(lambda x=x: figures(x), often),  # type: ignore[misc]
            "separate": calls(lambda x=x: separately(x), often),  # type: ignore[misc]
            "copy": calls(lambda x=x, there=there: there.copy_(x), often),  # type: ignore[misc]
            "new copy": calls(lambda x=x: x.clone(), often),  # type: ignore[misc]
        }
        samples = in_turns(ways, job["rounds"], f"{size} {job['repeat']}")
        sizes.append({"megabytes": size, "difference": error, "samples": samples})
    return {"kpis": len(KPIS), "sizes": sizes}
