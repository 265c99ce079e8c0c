"""What a cell gives by definition, in llama, gpt2 and gpt_neox: through the hand-written oracle of the conformance kit.

Three kinds of arithmetic are right: that of the attention asked for, that of eager attention (which alone has patterns,
and some backends always run), and float64 throughout, without the steps that Hugging Face code takes in float32 even
in a float64 model. The same forward with every site rounded to a dtype says what rounding alone does to an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crosslens.adapters import Edit, apply, replace, zero
from crosslens.adapters.attribution import measure
from crosslens.adapters.conformance.oracle import Oracle

from .design import EDITS, WHOLE_INPUT
from .scene import NEW, STEPS, TARGET, TOKENS, Outputs, Scene, dtype_of, model_of

LAYERS = 3
THROUGHOUT = "float64 throughout"


class RoundedOracle(Oracle):
    """The oracle with every site rounded to a dtype where it comes into being, and its gradient where it goes back.

    Args:
        model, attn_implementation, islands: as of `Oracle`.
        dtype: None leaves the oracle as it is.
        draw: 0 rounds to nearest; another number perturbs by up to one rounding, at random from this seed.
    """

    def __init__(
        self, model: Any, attn_implementation: str, islands: Literal["hf"] | None, dtype: torch.dtype | None, draw: int
    ) -> None:
        super().__init__(model, attn_implementation=attn_implementation, islands=islands)
        self.dtype, plain = dtype, self._forward
        self._random = torch.Generator().manual_seed(draw) if draw else None

        def rounded(decoder: Any, tokens: Tensor, positions: Tensor, visible: Tensor, site: Any) -> Tensor:
            return plain(decoder, tokens, positions, visible, lambda name, x: site(name, self.round(x)))

        if dtype is not None:
            self._forward = rounded

    def round(self, x: Tensor) -> Tensor:
        """To the dtype and back; differentiable."""
        if self.dtype is None:
            return x
        if self._random is None:
            return x.to(self.dtype).to(x.dtype)
        part = torch.rand(x.shape, generator=self._random, dtype=x.dtype) * 2 - 1
        return x * (1 + torch.finfo(self.dtype).eps / 2 * part)


@cache
def oracle_of(family: str, arithmetic: str, rounded: str | None = None, draw: int = 0) -> RoundedOracle:
    """The oracle of a family's tiny model, in one kind of arithmetic."""
    model, _ = model_of(family, "float64", "eager")
    whole = arithmetic == THROUGHOUT
    dtype = None if rounded is None else dtype_of(rounded)
    return RoundedOracle(model, "eager" if whole else arithmetic, None if whole else "hf", dtype, draw)


def drawn(scene: Scene) -> Tensor | None:
    """The value of the cell's edit, in float64."""
    if scene.cell.operation not in ("replace", "add", "generate+add"):
        return None
    run = oracle_of(scene.cell.family, scene.cell.attention).run(scene.ids, scene.mask)
    return scene.drawn(run.sites[scene.canonical])


def answer(scene: Scene, oracle: RoundedOracle) -> Outputs:
    """What the cell gives."""
    cell, site = scene.cell, scene.canonical
    if cell.operation == "capture":
        run = oracle.run(scene.ids, scene.mask)
        return {"site": run.sites[site], "logits": run.logits, "captured logits": run.logits}
    if cell.operation in EDITS:
        run = oracle.run(scene.ids, scene.mask, _edits(scene, oracle))
        return {"site": run.sites[site], "logits": run.logits}
    if cell.operation == "gradients":
        return {"gradient": oracle.gradients(scene.ids, [site], scene.metric, scene.mask)[site]}
    if cell.operation in ("generate", "generate+add"):
        ids, mask = scene.left
        edits = _edits(scene, oracle) if cell.operation == "generate+add" else []
        tokens, run = oracle.generate(ids, NEW, mask, edits)
        return {"tokens": tokens[:, TOKENS:], "logits": run.logits[:, TOKENS - 1 :], "site": run.sites[site]}
    return _METHODS[cell.method](scene, oracle)


def _edits(scene: Scene, oracle: RoundedOracle) -> list[Edit]:
    """The cell's edit; then what it leaves is rounded, too."""
    edit = scene.edit(scene.canonical, drawn(scene))
    return [edit] if oracle.dtype is None else [edit, apply(scene.canonical, oracle.round)]


# ---- attribution: each method by its definition, see `adapters.attribution.METHODS`


def _last(scene: Scene) -> Tensor:
    """(batch,) column of the target's position."""
    columns = torch.arange(TOKENS)
    return torch.stack([columns[own][TARGET["position"]] for own in scene.mask])


def _here(scene: Scene) -> Tensor:
    """(batch, 8) real tokens up to there."""
    return scene.mask & (torch.arange(TOKENS) <= _last(scene)[:, None])


def _value(scene: Scene, oracle: RoundedOracle, logits: Tensor) -> Tensor:
    rows = torch.arange(scene.cell.batch)
    token, minus = (torch.full((scene.cell.batch,), TARGET[name]) for name in ("token", "minus"))
    return oracle.round(measure(logits[rows, _last(scene)], token, minus, "logit"))


def _slope(scene: Scene, oracle: RoundedOracle, site: str, edits: Sequence[Edit] = ()) -> Tensor:
    found = oracle.gradients(scene.ids, [site], lambda logits: _value(scene, oracle, logits), scene.mask, edits)
    return found[site]


def _at(scene: Scene, oracle: RoundedOracle, embeds: Tensor) -> Tensor:
    return _value(scene, oracle, oracle.run(scene.ids, scene.mask, [replace("embed", embeds)]).logits)


def _scored(scene: Scene, oracle: RoundedOracle, units: Tensor, mean: bool = False) -> Outputs:
    """Units and scores, 0 at tokens that have no say."""
    here = _here(scene)
    units = oracle.round(units * here[(...,) + (None,) * (units.ndim - 2)])
    flat = units.flatten(2)
    return {"units": units, "scores": oracle.round(flat.mean(-1) if mean else flat.sum(-1))}


def _saliency(scene: Scene, oracle: RoundedOracle) -> Outputs:
    return _scored(scene, oracle, _slope(scene, oracle, "embed").abs())


def _times_gradient(scene: Scene, oracle: RoundedOracle) -> Outputs:
    site = scene.canonical if scene.cell.site != WHOLE_INPUT else "embed"
    values = oracle.run(scene.ids, scene.mask).sites[site]
    return _scored(scene, oracle, values * _slope(scene, oracle, site))


def _integrated(scene: Scene, oracle: RoundedOracle) -> Outputs:
    embeds = oracle.run(scene.ids, scene.mask).sites["embed"]
    mean = torch.zeros_like(embeds)
    for node, weight in zip(*np.polynomial.legendre.leggauss(STEPS), strict=True):
        point = oracle.round((1 + node) / 2 * embeds)
        mean = oracle.round(mean + oracle.round(weight / 2 * _slope(scene, oracle, "embed", [replace("embed", point)])))
    return _scored(scene, oracle, embeds * mean)


def _occlusion(scene: Scene, oracle: RoundedOracle) -> Outputs:
    run = oracle.run(scene.ids, scene.mask)
    scores = torch.zeros(scene.ids.shape, dtype=torch.float64)
    for column in range(TOKENS):
        embeds = run.sites["embed"].clone()
        embeds[:, column] = 0
        scores[:, column] = _value(scene, oracle, run.logits) - _at(scene, oracle, embeds)
    return {"scores": oracle.round(scores * _here(scene))}


def _attention(scene: Scene, oracle: RoundedOracle) -> Outputs:
    sites, rows = oracle.run(scene.ids, scene.mask).sites, torch.arange(scene.cell.batch)
    patterns = [sites[f"blocks.{layer}.attn.pattern"][rows, :, _last(scene)] for layer in range(LAYERS)]
    units = torch.stack(patterns, 1).permute(0, 3, 1, 2)  # row, key, layer, head
    return _scored(scene, oracle, units, mean=True)


def _value_zeroing(scene: Scene, oracle: RoundedOracle) -> Outputs:
    last, units = _last(scene), torch.zeros(*scene.ids.shape, LAYERS, dtype=torch.float64)
    clean, columns = oracle.run(scene.ids, scene.mask).sites, torch.arange(TOKENS)
    for position in range(TOKENS):
        rows = [row for row, length in enumerate(scene.lengths) if position <= length + TARGET["position"]]
        if not rows:
            break
        here = [int(columns[scene.mask[row]][position]) for row in rows]
        for layer in range(LAYERS):
            after = f"blocks.{layer}.resid_post" if layer < LAYERS - 1 else "final_norm"
            edit = zero(f"blocks.{layer}.attn.v", positions=[position])
            without = oracle.run(scene.ids[rows], scene.mask[rows], [edit]).sites[after]
            pair = clean[after][rows, last[rows]], without[range(len(rows)), last[rows]]
            change = oracle.round(1 - oracle.round(torch.cosine_similarity(*pair, dim=-1)))
            units[rows, here, layer] = change.where(change >= 1e-5, 0.0)
    return _scored(scene, oracle, units / units.sum(1, keepdim=True), mean=True)


_METHODS: dict[str, Callable[[Scene, RoundedOracle], Outputs]] = {
    "saliency": _saliency,
    "input_x_gradient": _times_gradient,
    "layer_gradient_x_activation": _times_gradient,
    "integrated_gradients": _integrated,
    "occlusion": _occlusion,
    "attention": _attention,
    "value_zeroing": _value_zeroing,
}
