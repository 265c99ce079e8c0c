"""What an inspector gives in a cell, and how far it is from what it should."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters import Inspector

from .design import EDITS, LAYERWISE
from .scene import NEW, STEPS, TOKENS, Outputs, Scene


@dataclass(frozen=True)
class Distance:
    """The part of an answer that is farthest from the reference.

    Attributes:
        relative: largest difference over the largest magnitude of the reference; infinite where it is not finite.
        absolute: largest difference.
        cosine: of the two; 1 for a wrong scale, which it does not see.
        scale: least-squares factor between them; 1 where only the direction is wrong.
        part: name of the output.
        visible: what anybody would see: a wrong shape or dtype, NaN; empty where nothing tells.
    """

    relative: float = 0.0
    absolute: float = 0.0
    cosine: float = 1.0
    scale: float = 1.0
    part: str = ""
    visible: str = ""


def ask(lens: Inspector, scene: Scene, dtype: torch.dtype, value: Tensor | None) -> Outputs:
    """Put the cell's question to an inspector whose model has this dtype; `value` is that of its edit."""
    cell, site, inputs = scene.cell, scene.site, scene.inputs
    edits = []
    if cell.operation in (*EDITS, "generate+add"):
        edits = [scene.edit(site, None if value is None else value.to(dtype))]
    if cell.operation == "capture":  # named out of the order of execution, as they may be
        run = lens.run(inputs, capture=["logits", site])
        return {"site": run[site], "logits": run.logits, "captured logits": run["logits"]}
    if cell.operation in EDITS:
        run = lens.run(inputs, capture=[site], edits=edits)
        return {"site": run[site], "logits": run.logits}
    if cell.operation == "gradients":
        return {"gradient": lens.gradients(inputs, [site], scene.metric)[site]}
    if cell.operation.startswith("generate"):
        made = lens.generate(inputs, max_new_tokens=NEW, capture=[site], edits=edits)
        return {"tokens": made.new_tokens, "logits": made.logits, "site": made[site]}
    options: dict[str, Any] = {"site": site} if cell.method == LAYERWISE else {}
    options |= {"steps": STEPS} if cell.method == "integrated_gradients" else {}
    found = lens.attribute(inputs, scene.target, method=cell.method, **options)
    return {"scores": found.scores} | ({} if found.units is None else {"units": found.units})


def distance(scene: Scene, got: Outputs, want: Outputs, dtype: torch.dtype | None = None) -> Distance:
    """How far an answer is from the reference's, where both are defined: at real tokens.

    In a generation that took another token than the reference, what counts is by how much its logit falls short, and
    all that was read before.

    Args:
        dtype: that the answer must have; None takes any.
    """
    until = None
    if "tokens" in want and got["tokens"].shape == want["tokens"].shape:
        until = _agreeing(got["tokens"], want["tokens"])
    worst = Distance()
    for part, right in want.items():
        if part not in got:
            return Distance(math.inf, math.inf, 0, 0, part, f"no {part}")
        one = got[part]
        if one.shape != right.shape:
            return Distance(math.inf, math.inf, 0, 0, part, f"shape {tuple(one.shape)}, must be {tuple(right.shape)}")
        if part == "tokens":
            assert until is not None
            found = _shortfall(one, right, want["logits"], until)
        else:
            here = _here(scene, part, right, until)
            found = _between(one.detach().double()[here], right.detach().double()[here], part)
            if dtype is not None and one.dtype != dtype:
                return replace(found, visible=f"{one.dtype}, must be {dtype}")
        worst = max(worst, found, key=lambda each: each.relative)
    return worst


def _between(a: Tensor, b: Tensor, part: str) -> Distance:
    if not a.numel():
        return Distance(part=part)
    if not bool(a.isfinite().all()):
        return Distance(math.inf, math.inf, 0, 0, part, "not finite")
    absolute = float((a - b).abs().max())
    if absolute == 0:
        return Distance(part=part)
    size, squares, product = float(b.abs().max()), float(b.square().sum()), float((a * b).sum())
    length = math.sqrt(squares * float(a.square().sum()))
    return Distance(
        absolute / size if size else math.inf, absolute, product / length if length else 0.0,
        product / squares if squares else math.inf, part,
    )  # fmt: skip


def _agreeing(got: Tensor, want: Tensor) -> list[int]:
    """How many new tokens of each row are the reference's, before the first that is not."""
    return [int(same.int().cumprod(0).sum()) for same in got == want]


def _shortfall(got: Tensor, want: Tensor, logits: Tensor, until: list[int]) -> Distance:
    """By how much less, in the reference, the token that was taken is worth than the one that should have been."""
    most = 0.0
    for row, step in enumerate(until):
        if step < NEW:
            most = max(most, float(logits[row, step, want[row, step]] - logits[row, step, got[row, step]]))
    return Distance(most / float(logits.abs().max()), most, part="tokens")


def _here(scene: Scene, part: str, tensor: Tensor, until: list[int] | None) -> Any:
    """Which entries count: those at real tokens (of patterns: real queries and keys), before tokens went apart."""
    if part in ("scores", "units"):
        return slice(None)  # 0 at padding, by definition
    if until is None:
        real = scene.mask
    elif part == "logits":
        return torch.arange(NEW)[None] <= torch.tensor(until)[:, None]
    else:
        column, length = torch.arange(TOKENS + NEW - 1), torch.tensor(scene.lengths)[:, None]
        real = (column >= TOKENS - length) & (column < TOKENS + torch.tensor(until)[:, None])
    if scene.cell.local != "attn.pattern" or part not in ("site", "gradient"):
        return real
    return (real[:, None, :, None] & real[:, None, None, :]).expand(tensor.shape)
