"""Neurons: do those that differ most between two categories carry the difference?

The same sentence is about a woman or about a man, and what should follow is "She" or "He". In one half of the sentences
the neurons are found that differ most; in the other half they are set to zero, or to their mean, and the prediction is
compared with what as many random neurons of the same layers do to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosslens.adapters import Edit, Inspector, replace, zero

from . import data
from .ablation import Chosen, edits_at, leading, losses, others
from .base import Known, Progress, Result, Score, Size, Task
from .prompting import fork
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, site_names, timed

CATEGORIES = ("woman", "man")
PRONOUNS = ("She", "He")
STORIES: Mapping[Size, int] = MappingProxyType({"smoke": 4, "default": 14, "full": 14})
DRAWS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 20})
SHARE = (1 / 1000, 1 / 500)
"""Of all neurons, at least and at most these are ablated: 46 to 92 of the 46,080 in SmolLM2-135M."""
FEWEST = (4, 8)
"""In place of SHARE, in smaller models."""


@dataclass(frozen=True)
class Work:
    """The sentences.

    Attributes:
        texts: columns story, category, held: whether neurons are ablated in it or found in it.
        finding, held: the sentences of either half, padded on the right.
        pronouns: token ids with which "She" and "He" begin.
        sites: names of every block's `mlp.post`.
        draws: how often random neurons are drawn.
        least, most: how many neurons are ablated.
    """

    texts: pd.DataFrame
    finding: Batch
    held: Batch
    pronouns: tuple[int, int]
    sites: list[str]
    draws: int
    least: int
    most: int

    @property
    def conditions(self) -> list[tuple[str, str, int]]:
        """(ablated, how, draw) of each condition."""
        either = [(how, draw) for how in ("zero", "mean") for draw in range(self.draws)]
        return [("nothing", "", 0), ("found", "zero", 0), ("found", "mean", 0), *(("random", *each) for each in either)]

    def pairs(self, held: bool) -> NDArray[np.int64]:
        """(story, category) places among the sentences of one half."""
        half = self.texts[self.texts["held"] == held].reset_index(drop=True)
        places = [half.index[half["category"] == category].to_numpy() for category in CATEGORIES]
        return np.stack(places, axis=1)


class Neurons(Task):
    """Result:

    score (layer, neuron): difference of the two categories, woman less man, in the finding half: mean over pairs of the
        activation's mean over tokens, divided by its standard deviation plus that deviation's median over the layer.
    loss (condition, text): mean over the tokens of a held-out sentence but the first, in nats.
    kl (condition, text): divergence of the prediction at its end from that without ablation, in nats.
    prefers (condition, text): logit of "She" less that of "He" there.
    scale (): largest logit, the measure of rounding of logits. spread (layer,): largest activation in units of the
        median deviation, the measure of rounding of scores.
    """

    name: ClassVar[str] = "neurons"
    question: ClassVar[str] = "Do the neurons that differ most between two categories carry the difference?"
    source: ClassVar[str] = (
        "gender neurons: Vig et al. 2020, arXiv:2004.12265; score: Tusher et al. 2001, doi:10.1073/pnas.091062498"
    )
    categories: ClassVar[str] = "a woman and a man in the same sentence"
    data: ClassVar[str] = "characters-v1, the first sentences of 28 stories written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ("capture.mlp", "edit.zero", "edit.replace", "edit.units", "padding.right")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first sentences of the stories of a woman and a man; every other story is held out.

        Raises:
            InputError: no tokenizer, a model without canonical sites, or a tokenizer that writes both pronouns alike.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        stories = data.read_stories()
        stories = stories[(stories["attribute"] == "gender") & stories["category"].isin(CATEGORIES)]
        stories = stories[stories["template"].isin(stories["template"].unique()[: STORIES[size]])]
        number = pd.factorize(stories["template"])[0]
        texts = pd.DataFrame({"story": stories["template"], "category": stories["category"], "held": number % 2 == 1})
        texts = texts.reset_index(drop=True)
        ids, ends = [], set()
        for text in stories["text"]:
            tokens, pronouns = fork(self.name, tokenizer, text.split(". ")[0] + ".", PRONOUNS)
            ids.append(tokens)
            ends.add(pronouns)
        halves = [[row for row, is_held in zip(ids, texts["held"], strict=True) if is_held == held] for held in (0, 1)]
        finding, held = (batches(half, tokenizer, len(half))[0] for half in halves)
        sites = site_names(architecture, "mlp.post")
        total = len(sites) * architecture.sizes["d_mlp"]
        least, most = (max(few, round(share * total)) for few, share in zip(FEWEST, SHARE, strict=True))
        return Work(texts, finding, held, ends.pop(), sites, DRAWS[size], least, most)

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One forward to find the neurons, then one for each condition, of all sentences of a half."""
        steps = len(work.conditions) + 1
        run = lens.run(work.finding.inputs, capture=work.sites)
        real = work.finding.inputs["attention_mask"].double()
        means = np.empty((len(real), len(work.sites), run[work.sites[0]].shape[-1]))
        for layer, site in enumerate(work.sites):
            weights = (real / real.sum(1, keepdim=True)).to(run[site].device)
            means[work.finding.rows, layer] = torch.einsum("bp,bpn->bn", weights, run[site].double()).cpu().numpy()
        del run
        out, baseline = _Figures(work, means), means.mean(axis=0)
        if progress:
            progress(1, steps)
        inputs = work.held.inputs
        lengths = inputs["attention_mask"].sum(1).tolist()
        like = next(lens.model.parameters())

        def to_mean(layer: int, units: list[int]) -> Edit:
            value = torch.tensor(baseline[layer, units], dtype=like.dtype, device=like.device)
            return replace(work.sites[layer], value.expand(*inputs["input_ids"].shape, -1).clone(), units=units)

        for c, edits in enumerate(out.conditions(to_mean)):
            logits = lens.run(inputs, edits=edits).logits
            for i, loss in enumerate(losses(logits, inputs["input_ids"])):
                out.text(c, work.held.rows[i], loss[: lengths[i] - 1], logits[i, lengths[i] - 1])
            if progress:
                progress(c + 2, steps)
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, sentence by sentence, without padding; each condition is a row of the batch."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        found = dict(zip(work.finding.rows, work.finding.unpadded(), strict=True))
        steps, done = len(found) + len(work.held.rows), 0

        def report() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, steps)

        means = []
        for row in sorted(found):
            sites = oracle.run(found[row][None]).sites
            means.append(np.stack([sites[site][0].cpu().numpy().mean(axis=0) for site in work.sites]))
            report()
        out, baseline = _Figures(work, np.stack(means)), np.mean(means, axis=0)
        texts = list(zip(work.held.rows, work.held.unpadded(), strict=True))
        for row, ids in texts:

            def to_mean(layer: int, units: list[int], length: int = len(ids)) -> Edit:
                value = np.broadcast_to(baseline[layer, units], (1, length, len(units)))
                return replace(work.sites[layer], torch.from_numpy(value.copy()), units=units)

            conditions = list(out.conditions(to_mean))
            edits = [dataclasses.replace(edit, rows=[c]) for c, part in enumerate(conditions) for edit in part]
            for c, logits in enumerate(oracle.run(ids.repeat(len(conditions), 1), edits=edits).logits):
                loss = nn.functional.cross_entropy(logits[:-1], ids[1:].to(logits.device), reduction="none")
                out.text(c, row, loss.cpu().numpy(), logits[-1])
            report()
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are relative to the largest logit, or activation; the effect is the divergence."""
        scale = float(reference["scale"])
        scales: dict[str, Any] = {name: scale for name in ("loss", "kl", "prefers", "scale")}
        scales["score"] = reference["spread"][:, None]
        effect = float(min(reference["kl"][c].mean() for c in (1, 2)) / scale)
        return judged(result, reference, scales, dtype, ranking="score", effect=effect)

    def known(self, reference: Result, work: Work) -> Known:
        """A few neurons hold much of what a model makes of gender: Vig et al. 2020."""
        kl, gap, whole = _effects(reference, work)
        taken, by_chance = (1 - gap[which, "zero"] / whole for which in ("found", "random"))
        return Known(
            "zeroing the neurons that differ most takes a quarter or more of the logits between She and He, and as "
            "many random ones of the same layers less than a tenth; the prediction moves twice as far or more",
            f"of {whole:.2f} logits the found ones take {taken:.2f}, random ones {by_chance:.2f}; divergences are "
            f"{kl['found', 'zero']:.3f} and {kl['random', 'zero']:.3f} nats",
            bool(whole > 0 and taken > 0.25 and by_chance < 0.1 and kl["found", "zero"] > 2 * kl["random", "zero"]),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One forward of held-out sentences, with the first neurons of every layer zeroed."""
        units = list(range(max(1, work.most // len(work.sites))))
        inputs = timed(work.held.inputs)
        return lambda: lens.run(inputs, edits=[zero(site, units=units) for site in work.sites])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, timed(work.held.inputs))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (condition, held-out sentence).

        Columns: ablated, how, draw, story, category; loss, kl and prefers as in the result.
        """
        texts = work.texts[work.texts["held"]]
        return pd.DataFrame(
            [
                {"ablated": ablated, "how": how, "draw": draw, "story": text.story, "category": text.category}
                | {name: float(result[name][c, i]) for name in ("loss", "kl", "prefers")}
                for c, (ablated, how, draw) in enumerate(work.conditions)
                for i, text in enumerate(texts.itertuples())
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        kl, gap, whole = _effects(result, work)
        found = _found(result["score"], work)
        layers = np.flatnonzero(found.any(axis=1))
        return (
            f"of {whole:.2f} logits between She and He, zeroing the {found.sum()} neurons of {found.size} that differ "
            f"most leaves {gap['found', 'zero']:.2f}, setting them to their mean {gap['found', 'mean']:.2f}, zeroing "
            f"random ones {gap['random', 'zero']:.2f}; the prediction moves by {kl['found', 'zero']:.3f}, "
            f"{kl['found', 'mean']:.3f} and {kl['random', 'zero']:.3f} nats; they lie in layers {layers[0]} to "
            f"{layers[-1]}"
        )


def scores(means: NDArray[np.float64], pairs: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each neuron's categories are apart; Tusher et al. 2001, paired, with the median as the constant.

    Args:
        means: (text, layer, neuron) activations.
        pairs: (story, 2) places of the two categories' texts.

    Returns: (layer, neuron) scores; (layer,) the largest activation in units of the median deviation.
    """
    apart = means[pairs[:, 0]] - means[pairs[:, 1]]
    spread = apart.std(axis=0, ddof=1)
    floor = np.median(spread, axis=1, keepdims=True)
    return apart.mean(axis=0) / (spread + floor), np.abs(means).max(axis=(0, 2)) / floor[:, 0]


def _found(score: NDArray[np.float64], work: Work) -> Chosen:
    """(layer, neuron): those to be ablated."""
    return leading(np.abs(score), work.least, work.most)


def _effects(result: Result, work: Work) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], float]:
    """(ablated, how) -> mean divergence, and what is left of the categories' difference; that difference as it was."""
    where = work.pairs(held=True)
    gaps = (result["prefers"][:, where[:, 0]] - result["prefers"][:, where[:, 1]]).mean(axis=1)
    table = pd.DataFrame(work.conditions, columns=["ablated", "how", "draw"])
    table = table.assign(kl=result["kl"].mean(axis=1), gap=gaps)
    means = table.groupby(["ablated", "how"])[["kl", "gap"]].mean().to_dict()
    return means["kl"], means["gap"], float(gaps[0])


class _Figures:
    """Gathers the result, condition by condition."""

    def __init__(self, work: Work, means: NDArray[np.float64]) -> None:
        self._work = work
        shape = len(work.conditions), len(work.held.rows)
        score, spread = scores(means, work.pairs(held=False))
        self.result = {name: np.full(shape, np.nan) for name in ("loss", "kl", "prefers")}
        self.result |= {"score": score, "spread": spread, "scale": np.array(0.0)}
        self._plain: dict[int, Tensor] = {}

    def conditions(self, to_mean: Callable[[int, list[int]], Edit]) -> Iterator[Sequence[Edit]]:
        """Edits of each condition, given the edit that sets neurons of a layer to their mean."""
        found = _found(self.result["score"], self._work)
        make = {"zero": lambda layer, units: zero(self._work.sites[layer], units=units), "mean": to_mean}
        for ablated, how, draw in self._work.conditions:
            chosen = others(found, draw) if ablated == "random" else found
            yield edits_at(chosen, make[how]) if how else []

    def text(self, c: int, row: int, loss: NDArray[np.float64], last: Tensor) -> None:
        """Loss of each token, and logits (d_vocab,) at the end, of one held-out sentence under condition c."""
        known = torch.log_softmax(last.double(), dim=-1)
        if not c:
            self._plain[row] = known
            self.result["scale"] = np.maximum(self.result["scale"], float(last.abs().max()))
        plain = self._plain[row]
        she, he = self._work.pronouns
        self.result["loss"][c, row] = loss.mean()
        self.result["kl"][c, row] = float((plain.exp() * (plain - known)).sum())
        self.result["prefers"][c, row] = float(last[she].double() - last[he].double())
