"""Characters: short stories in which only an attribute of the character changes; where does the network feel it?

Every story is told once for each value of nationality, gender, age and occupation, so every contrast is paired: the
same story, another character. Key figures are taken of every residual stream, attention output, MLP output, neuron
layer and attention pattern, over the story's real tokens; the unit of replication is the story.
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
from scipy import special
from torch import Tensor, nn

from crosslens.adapters import Inspector

from . import data
from .base import Known, Progress, Result, Score, Size, Task
from .effects import Contrast, contrasts, false_discovery, rank_agreement, rounding
from .kpis import NAMES, causal_mask, kpis
from .scoring import difference
from .workload import Batch, architecture_for, bare_forward, batches, dtype_of, middling, site_names

LOCAL_SITES = ("resid_post", "attn.out", "mlp.out", "mlp.post", "attn.pattern")
BATCH = 16
TEMPLATES: Mapping[Size, int] = MappingProxyType({"smoke": 3, "default": 7, "full": 14})
SMOKE_CATEGORIES = 2

# What a figure's rounding scales with, where that is not the figure itself: a mean of both signs cancels, and the
# smallest element is computed from the same sums as the largest.
_SCALE_OF = {"mean": "abs_mean", "sd": "rms", "min": "abs_max", "max": "abs_max"}
# Whether a figure underflows to exactly 0 depends on the dtype, and how long a text is on the text alone.
_NOT_RANKED = ("count", "zero_fraction")


@dataclass(frozen=True)
class Work:
    """Tokenised stories.

    Attributes:
        stories: columns id, text, attribute, category, pair, template, and tokens: the story's length.
        batches: all stories, sorted by length.
        sites: names of the sites whose key figures are taken, in order of execution.
        dtype: of the model, such as `float32`.
    """

    stories: pd.DataFrame
    batches: list[Batch]
    sites: list[str]
    dtype: str


class Characters(Task):
    """Result: `kpis` (example, site, kpi), in the order of `Work.stories`, `Work.sites` and `kpis.NAMES`."""

    name: ClassVar[str] = "characters"
    question: ClassVar[str] = "Where in the network does it show which nationality, gender, age or job a character has?"
    source: ClassVar[str] = "categorised recording of key figures, as in comgra; stories of crosslens' own"
    categories: ClassVar[str] = "the values of one attribute of the character, in the same story"
    data: ClassVar[str] = "characters-v1, 210 stories written for crosslens, CC0-1.0"
    causal: ClassVar[bool] = True
    """Whether a token sees only those before it."""
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual",
        "capture.attention",
        "capture.mlp",
        "capture.pattern",
        "padding.right",
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first stories in every telling, tokenised; `smoke` takes two values of each attribute.

        Raises:
            InputError: no tokenizer, or a model without canonical sites.
        """
        architecture = architecture_for(self.name, model, tokenizer, causal=self.causal)
        stories = data.read_stories()
        few = stories["template"].isin(stories["template"].unique()[: TEMPLATES[size]])
        if size == "smoke":
            few &= stories.groupby("attribute")["category"].transform(lambda c: pd.factorize(c)[0]) < SMOKE_CATEGORIES
        stories = stories[few].reset_index(drop=True)
        rows = [list(tokenizer(text)["input_ids"]) for text in stories["text"]]
        stories["tokens"] = [len(row) for row in rows]
        parts = batches(rows, tokenizer, BATCH)
        return Work(stories, parts, site_names(architecture, *LOCAL_SITES), dtype_of(model))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        out = self._empty(work)
        for done, batch in enumerate(work.batches, start=1):
            run = lens.run(batch.inputs, capture=work.sites)
            self._take(out, batch.rows, run, batch.inputs["attention_mask"].bool(), work)
            if progress:
                progress(done, len(work.batches))
        return out

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle and NumPy, in batches of equal length: no padding, no masks.

        The oracle states eager attention, which is what a backend needs to show patterns.
        """
        truth = self._truth(model)
        out = self._empty(work)
        ids = {row: ids for batch in work.batches for row, ids in zip(batch.rows, batch.unpadded(), strict=True)}
        groups = [g for _, g in work.stories.groupby("tokens")]
        parts = [list(g.index[i : i + BATCH // 2]) for g in groups for i in range(0, len(g), BATCH // 2)]
        for done, rows in enumerate(parts, start=1):
            self._state(out, rows, truth(torch.stack([ids[row] for row in rows])), work)
            if progress:
                progress(done, len(parts))
        return out

    def _empty(self, work: Work) -> dict[str, NDArray[np.float64]]:
        return {"kpis": np.full((len(work.stories), len(work.sites), len(NAMES)), np.nan)}

    def _take(
        self, out: dict[str, NDArray[np.float64]], rows: list[int], tensors: Mapping[str, Tensor], real: Tensor,
        work: Work,
    ) -> None:  # fmt: skip
        """Figures of a batch whose real tokens are `real`, (batch, pos), as a backend gave it."""
        for i, site in enumerate(work.sites):
            pattern = site.endswith("attn.pattern")
            both = causal_mask(real) if self.causal else (real[:, :, None] & real[:, None])[:, None]
            mask = (both if pattern else real[:, :, None]).to(tensors[site].device)
            out["kpis"][rows, i] = kpis(tensors[site], mask, distributions=pattern).cpu().numpy()

    def _truth(self, model: nn.Module) -> Callable[[Tensor], Mapping[str, Tensor]]:
        """(batch, pos) token ids without padding -> every site, in float64."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model, attn_implementation="eager")
        return lambda ids: oracle.run(ids).sites

    def _state(
        self, out: dict[str, NDArray[np.float64]], rows: list[int], tensors: Mapping[str, Tensor], work: Work
    ) -> None:  # fmt: skip
        """Figures of texts without padding, straight from their definitions."""
        for i, site in enumerate(work.sites):
            pattern = site.endswith("attn.pattern")
            for row, tensor in zip(rows, tensors[site].cpu().numpy(), strict=True):
                out["kpis"][row, i] = _figures(tensor, pattern=pattern, causal=self.causal)

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are relative to the scale of each (site, kpi): the largest such figure of any example."""
        ours, right = result["kpis"], reference["kpis"]
        scored = [i for i, name in enumerate(NAMES) if name != "zero_fraction"]
        scale = _scale(right)
        error = difference(ours, right)[..., scored]
        relative = error / np.where(scale > 0, scale, 1.0)[:, scored]
        noise = rounding(dtype)
        a, b = (contrasts(values, work.stories) for values in (ours, right))
        clear = [_clear(c, scale, noise) for c in b]
        strength, expected = (
            np.concatenate([np.abs(c.g)[here] for c, here in zip(cs, clear, strict=True)]) for cs in (a, b)
        )
        return Score(
            max_abs_error=float(error.max()),
            max_rel_error=float(relative.max()),
            rank_agreement=rank_agreement(np.nan_to_num(strength), expected),
            effect=_leading(b, clear, scale) / noise,
            noise=noise,
            right=bool(relative.max() <= noise),
        )

    def known(self, reference: Result, work: Work) -> Known:
        """Massive activations: Sun et al. 2024, arXiv:2402.17762."""
        middle = work.sites.index([site for site in work.sites if site.endswith("resid_post")][len(work.sites) // 10])
        kpi = reference["kpis"][:, middle]
        ratio = float(np.median(kpi[:, NAMES.index("abs_max")] / kpi[:, NAMES.index("abs_mean")]))
        return Known(
            "a few units of a middle layer's residual stream are 100 times its mean size or more",
            f"the largest is {ratio:.0f} times the mean at {work.sites[middle]}, in the median story",
            ratio > 100,
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """Stories of middling length with all their sites captured; key figures are not the backend's work."""
        inputs = middling(work.batches)
        return lambda: lens.run(inputs, capture=work.sites)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        """The same stories through the model alone, with eager attention as well: patterns exist nowhere else."""
        return bare_forward(model, middling(work.batches), eager=True)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (attribute, category, site, kpi), where they differ most first.

        Columns: n stories; mean and sd of the key figure over them; difference, to the attribute's other categories
        in the same stories; g, the paired effect size of that difference (`effects.Contrast.g`), which says how regular
        the difference is and not how large; p of its paired t test; q, the false discovery rate over the whole table.
        g, p and q are NaN where rounding could make the difference.
        """
        scale, noise = _scale(result["kpis"]), rounding(work.dtype)
        sites, names = (a.ravel() for a in np.meshgrid(work.sites, NAMES, indexing="ij"))
        parts = []
        for contrast in contrasts(result["kpis"], work.stories):
            clear = _clear(contrast, scale, noise)
            columns = {
                "mean": contrast.mean,
                "sd": contrast.sd,
                "difference": contrast.difference,
                "g": np.where(clear, contrast.g, np.nan),
                "p": np.where(clear, contrast.p, np.nan),
            }
            part = pd.DataFrame({"site": sites, "kpi": names} | {name: x.ravel() for name, x in columns.items()})
            part.insert(0, "attribute", contrast.attribute)
            part.insert(1, "category", contrast.category)
            part.insert(4, "n", contrast.n)
            parts.append(part)
        table = pd.concat(parts, ignore_index=True)
        table["q"] = false_discovery(table["p"])
        return table.sort_values("g", key=lambda g: -g.abs(), kind="stable", ignore_index=True)

    def headline(self, result: Result, work: Work) -> str:
        table = self.table(result, work)
        leading = table.dropna(subset="g").drop_duplicates("attribute")
        if leading.empty:
            return "no key figure differs between the categories by more than rounding"
        found = [
            f"{row.attribute} at {row.site} {row.kpi} ({row.category}, g = {row.g:+.1f})"
            for row in leading.itertuples()
        ]
        uneven = work.stories.groupby("pair")["tokens"].nunique().gt(1).mean()
        note = f"; {uneven:.0%} of the pairs differ in length with this tokenizer" if uneven else ""
        return f"differ most: {'; '.join(found)}{note}"


def _figures(tensor: NDArray[np.float64], *, pattern: bool, causal: bool) -> list[float]:
    """The key figures of one example without padding, straight from their definitions.

    Args:
        tensor: (pos, width), or (head, query, key) of a pattern, causal or not.
    """
    rows = [tensor[:, q, : q + 1] for q in range(tensor.shape[1])] if pattern and causal else [tensor]
    x = np.concatenate([part.ravel() for part in rows])
    figures = {
        "count": x.size,
        "mean": np.mean(x),
        "sd": np.std(x),
        "abs_mean": np.mean(np.abs(x)),
        "rms": np.sqrt(np.mean(x**2)),
        "abs_max": np.max(np.abs(x)),
        "min": np.min(x),
        "max": np.max(x),
        "zero_fraction": np.mean(x == 0),
        "mean_norm": np.mean(np.concatenate([np.sqrt((part**2).sum(-1)) for part in rows])),
        "entropy": np.nan,
    }
    if pattern:
        figures["entropy"] = np.mean(np.concatenate([special.entr(part).sum(-1) for part in rows]))
    return [float(figures[name]) for name in NAMES]


def _scale(kpi: NDArray[np.float64]) -> NDArray[np.float64]:
    """(site, kpi): the size of the figures that each figure's rounding scales with."""
    largest: NDArray[np.float64] = np.abs(kpi).max(axis=0)
    return largest[:, [NAMES.index(_SCALE_OF.get(name, name)) for name in NAMES]]


def _clear(contrast: Contrast, scale: NDArray[np.float64], noise: float) -> NDArray[np.bool_]:
    """(site, kpi): whether the differences vary by more than rounding, and are not of the text or the dtype alone."""
    ranked = np.array([name not in _NOT_RANKED for name in NAMES])
    return ranked & (contrast.spread > noise * scale)


def _leading(found: list[Contrast], clear: list[NDArray[np.bool_]], scale: NDArray[np.float64]) -> float:
    """The difference of the strongest clear contrast, relative to its figure's scale."""
    strongest = 0.0, 0.0
    for contrast, here in zip(found, clear, strict=True):
        if here.any():
            g = np.where(here, np.abs(contrast.g), 0.0)
            at = np.unravel_index(g.argmax(), g.shape)
            strongest = max(strongest, (float(g[at]), float(np.abs(contrast.difference[at]) / scale[at])))
    return strongest[1]
