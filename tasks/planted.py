"""Planted: a known difference at a known place, in one of two situations; is it found there, and nowhere before?

Each text is read twice, as it is and "sick": with the deviations of every residual vector from its mean made larger at
one place, the middle of the network. Nothing else differs, so the truth is known: what lies before the place is the
same in both, and the place itself is the first that is not. Key figures are taken of every residual stream, attention
output and MLP output, and the sites ranked by how far they moved. `crosslens.benchmarks.known_truth` asks the harder
question, what is found when the texts differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosslens.adapters import Inspector
from crosslens.adapters.edits import Edit

from . import data
from .base import Known, Progress, Result, Score, Size, Task
from .effects import rounding
from .kpis import NAMES, kpis
from .planting import affected, plant
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, dtype_of, middling, site_names

LOCAL_SITES = ("resid_post", "attn.out", "mlp.out")
FIGURES = ("mean", "sd", "abs_mean", "rms", "abs_max")
TEXTS: Mapping[Size, int] = MappingProxyType({"smoke": 2, "default": 8, "full": 32})
KIND, SIZE = "variance", 0.5
BATCH = 8

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Tokenised texts, and what is planted.

    Attributes:
        texts: as they are read.
        batches: all texts, sorted by length.
        sites: names of the sites whose key figures are taken, in the order of execution.
        planted: the site at which the difference is planted.
        affected: (site,) whether the difference reaches it, by how the model is built.
        dtype: of the model, such as `float32`.
    """

    texts: list[str]
    batches: list[Batch]
    sites: list[str]
    planted: str
    affected: NDArray[np.bool_]
    dtype: str

    @property
    def edits(self) -> list[Edit]:
        """What makes a forward sick."""
        return plant(KIND, self.planted, SIZE)


class Planted(Task):
    """Result: `well` and `sick` (text, site, figure), in the order of `Work.texts`, `Work.sites` and `FIGURES`;
    `moved` (site,), the largest change of any figure at the site, mean over texts, relative to the figure's scale."""

    name: ClassVar[str] = "planted"
    question: ClassVar[str] = "Is a difference that was planted in one category found where it is, and not before?"
    source: ClassVar[str] = "categorised recording of key figures, as in comgra; the known truth of crosslens' own"
    categories: ClassVar[str] = "the same text as it is, and with wider residual vectors at the middle block"
    data: ClassVar[str] = "characters-v1, stories written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual",
        "capture.attention",
        "capture.mlp",
        "edit.apply",
        "padding.right",
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """One text of each story; the difference goes into the residual stream behind the middle block.

        Raises:
            InputError: no tokenizer, or a model that does not predict the next token.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        texts = data.read_stories().drop_duplicates("template")["text"].tolist()
        texts = (texts + data.read_stories()["text"].tolist())[: TEXTS[size]]
        streams = site_names(architecture, "resid_post")
        planted = streams[(len(streams) - 1) // 2]
        sites = site_names(architecture, *LOCAL_SITES)
        reached = set(affected(architecture, planted))
        parts = batches([list(tokenizer(text)["input_ids"]) for text in texts], tokenizer, BATCH)
        return Work(texts, parts, sites, planted, np.array([site in reached for site in sites]), dtype_of(model))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        columns = [NAMES.index(name) for name in FIGURES]
        found = {name: np.full((len(work.texts), len(work.sites), len(FIGURES)), np.nan) for name in ("well", "sick")}
        jobs = [(name, batch) for name in found for batch in work.batches]
        for done, (name, batch) in enumerate(jobs, start=1):
            run = lens.run(batch.inputs, capture=work.sites, edits=work.edits if name == "sick" else [])
            real = batch.inputs["attention_mask"].bool()[:, :, None]
            for i, site in enumerate(work.sites):
                figures = kpis(run[site], real.to(run[site].device))
                found[name][batch.rows, i] = figures[:, columns].cpu().numpy()
            if progress:
                progress(done, len(jobs))
        return {**found, "moved": _moved(found["well"], found["sick"])}

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle and NumPy, text by text: no padding, no masks."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        found = {name: np.full((len(work.texts), len(work.sites), len(FIGURES)), np.nan) for name in ("well", "sick")}
        ids = {row: ids for batch in work.batches for row, ids in zip(batch.rows, batch.unpadded(), strict=True)}
        for done, (row, tokens) in enumerate(sorted(ids.items()), start=1):
            for name in found:
                run = oracle.run(tokens[None], edits=[_wider(work.planted)] if name == "sick" else [])
                found[name][row] = [_figures(run.sites[site].cpu().numpy()) for site in work.sites]
            if progress:
                progress(done, len(ids))
        return {**found, "moved": _moved(found["well"], found["sick"])}

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors are relative to the scale of each (site, figure); the effect is how far the planted site moved."""
        scale = _scale(reference["well"], reference["sick"])
        scales: dict[str, Any] = {"well": scale, "sick": scale, "moved": 1.0}
        at = work.sites.index(work.planted)
        return judged(result, reference, scales, dtype, ranking="moved", effect=float(reference["moved"][at]))

    def known(self, reference: Result, work: Work) -> Known:
        """The truth that was planted; it holds on any model."""
        noise = rounding("float64")
        moved = reference["moved"] > noise
        first = work.sites[int(np.argmax(moved))] if moved.any() else "none"
        before = float(reference["moved"][~work.affected].max(initial=0.0))
        at = work.sites.index(work.planted)
        gain = reference["sick"][:, at, FIGURES.index("sd")] / reference["well"][:, at, FIGURES.index("sd")]
        there = f"{moved[work.affected].sum()} of {work.affected.sum()} affected sites moved"
        return Known(
            f"the first affected site is {work.planted}, nothing moves before it, and all that follows does",
            f"first moves {first}, its sd {gain.mean():.2f} times as large; {there}, the others by {before:.0e}",
            bool(first == work.planted and before <= noise and moved[work.affected].all()),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """Sick texts of middling length with all their sites captured."""
        inputs, edits = middling(work.batches), work.edits
        return lambda: lens.run(inputs, capture=work.sites, edits=edits)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, middling(work.batches))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row a site, those that moved furthest first: affected, moved, and each figure's mean, well and sick."""
        table = pd.DataFrame({"site": work.sites, "affected": work.affected, "moved": result["moved"]})
        for i, figure in enumerate(FIGURES):
            for name in ("well", "sick"):
                table[f"{figure}_{name}"] = result[name][:, :, i].mean(axis=0)
        return table.sort_values("moved", ascending=False, kind="stable", ignore_index=True)

    def headline(self, result: Result, work: Work) -> str:
        moved = result["moved"] > rounding(work.dtype)
        if not moved.any():
            return f"nothing moved, though a difference was planted at {work.planted}"
        first = work.sites[int(np.argmax(moved))]
        right = int((moved == work.affected).sum())
        return f"planted at {work.planted}, first found at {first}; {right} of {len(work.sites)} sites told right"


def _scale(well: Array, sick: Array) -> Array:
    """(site, figure): what rounding scales with; of a mean, which cancels, the mean size of what is summed."""
    largest: Array = np.maximum(np.abs(well), np.abs(sick)).max(axis=0)
    return largest[:, [FIGURES.index("abs_mean" if name == "mean" else name) for name in FIGURES]]


def _moved(well: Array, sick: Array) -> Array:
    """(site,) the largest relative change of any figure, mean over texts."""
    scale = _scale(well, sick)
    change = np.abs(sick - well).mean(axis=0)
    return np.asarray(np.divide(change, scale, out=np.zeros_like(change), where=scale > 0).max(axis=1))


def _figures(x: Array) -> list[float]:
    """`FIGURES` of one text without padding, straight from their definitions."""
    return [float(np.mean(x)), float(np.std(x)), float(np.mean(np.abs(x))), float(np.sqrt(np.mean(x**2))),
            float(np.max(np.abs(x)))]  # fmt: skip


def _wider(site: str) -> Edit:
    """What `plant` does, written again for the reference: x -> mean + (1 + SIZE) (x - mean), each vector by itself."""
    from crosslens.adapters import apply

    def widen(x: Tensor) -> Tensor:
        centre = torch.sum(x, -1, keepdim=True) / x.shape[-1]
        return x * (1 + SIZE) - centre * SIZE

    return apply(site, widen)
