"""Agreement: which states carry the number of the subject to the verb, and does a gradient find them?

"The key to the cabinets" goes on with "is", "The keys to the cabinets" with "are", whatever the noun in between.
Exact patching puts the singular subject's residual stream, at one layer and position, into the plural sentence, one
forward a cell. Attribution patching estimates all cells from one backward: gradient times difference.
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

from crosslens.adapters import Edit, InputError, Inspector, replace

from .attribution_patching import estimate
from .base import Known, Progress, Result, Score, Size, Task
from .data.causal import Sentence, read_agreement
from .effects import rank_agreement
from .prompting import fork
from .scoring import judged
from .sweeping import sweep
from .workload import architecture_for, bare_forward, site_names

SENTENCES: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 12})
NUMBERS = ("singular", "plural")
REFERENCE_BATCH = 32


@dataclass(frozen=True)
class Pair:
    """A sentence with a singular and with a plural subject, in equally many tokens.

    Attributes:
        id: of the sentence.
        attractor: the number of the noun between subject and verb, in both.
        singular, plural: (1, pos) token ids.
        verbs: token ids of the singular and the plural verb.
        first: position from which on the two differ.
        tokens: the plural sentence, token by token.
    """

    id: str
    attractor: str
    singular: Tensor
    plural: Tensor
    verbs: tuple[int, int]
    first: int
    tokens: list[str]

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.tokens)

    def prefers(self, logits: Tensor) -> Tensor:
        """(batch, pos, d_vocab) -> (batch,) logit of the singular verb less that of the plural one, at the end."""
        return _difference(logits, torch.tensor([self.verbs], device=logits.device).expand(len(logits), -1))


@dataclass(frozen=True)
class Work:
    """The sentences.

    Attributes:
        pairs: each sentence with both attractors.
        sites: names of every block's `resid_post`, in order of execution.
    """

    pairs: list[Pair]
    sites: list[str]


class Agreement(Task):
    """Result, in logits of the singular verb less the plural one at the end; NaN at positions that a pair lacks:

    exact, estimate (pair, layer, position): what the patch adds, by a forward of its own and by gradient. 0 where both
        sentences are the same up to the position.
    singular, plural (pair,): of the sentences themselves.
    scale (pair,): largest logit at the end of the plural sentence, the measure of rounding.
    slope (pair, layer, position): sum of |gradient| x (|singular| + |plural|), the measure of the estimate's rounding.
    """

    name: ClassVar[str] = "agreement"
    question: ClassVar[str] = "Which states carry the subject's number to the verb, and does a gradient find them?"
    source: ClassVar[str] = (
        "sentences: Linzen et al. 2016, arXiv:1611.01368; attribution patching: Nanda 2023, Syed et al. 2023, "
        "arXiv:2310.10348"
    )
    categories: ClassVar[str] = "singular and plural subjects, each with a singular and a plural attractor"
    data: ClassVar[str] = "agreement-v1, 12 sentences written for crosslens after Linzen et al., CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ("capture.residual", "edit.replace", "edit.positions", "gradients")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first sentences whose subject has equally many tokens in the singular and the plural.

        Raises:
            InputError: no tokenizer, a model without canonical sites, or no such sentence.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        data = read_agreement()
        found = [
            [pair for number in range(2) if (pair := _pair(tokenizer, sentence, number, data.verbs))]
            for sentence in data.sentences
        ]
        alike = [pairs for pairs in found if len(pairs) == 2][: SENTENCES[size]]
        if not alike:
            raise InputError(
                f"task {self.name!r}: this tokenizer writes no subject of {len(data.sentences)} with equally many "
                "tokens in the singular and the plural; a patch needs them"
            )
        return Work([pair for pairs in alike for pair in pairs], site_names(architecture, "resid_post"))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """By `sweep` and `estimate`, pairs of one length together, from the first position at which they differ."""
        out = _Figures(work)
        total, done = sum(out.cells(pair) for pair in work.pairs), 0
        for rows in _alike(work):
            pairs = [work.pairs[row] for row in rows]
            singular, plural = (torch.cat([getattr(pair, number) for pair in pairs]) for number in NUMBERS)
            source = lens.run(singular, capture=work.sites)
            out.sentences(rows, source.logits, lens.run(plural).logits)
            edits: list[list[Edit]] = [
                [replace(site, source[site][:, p : p + 1], positions=[p])]
                for site in work.sites
                for p in range(pairs[0].first, pairs[0].length)
            ]
            verbs = torch.tensor([pair.verbs for pair in pairs], device=source.logits.device)

            def prefers(logits: Tensor, verbs: Tensor = verbs) -> Tensor:
                return _difference(logits, verbs)

            def report(cell: int, _: int, before: int = done, times: int = len(rows)) -> None:
                if progress:
                    progress(before + times * cell, total)

            exact = sweep(lens, plural, edits, prefers, logits_at=[-1], progress=report)
            estimated = estimate(lens, plural, edits, prefers)
            for column, row in enumerate(rows):
                out.patched("exact", row, exact[:, column])
                out.patched("estimate", row, estimated[:, column])
            done += len(edits) * len(rows)
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle: whole forwards, cells as rows of a batch that mixes layers; gradients by autograd."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle, out = Oracle(model), _Figures(work)
        total, done = sum(out.cells(pair) for pair in work.pairs), 0
        for i, pair in enumerate(work.pairs):
            source, target = oracle.run(pair.singular), oracle.run(pair.plural)
            out.sentences([i], source.logits, target.logits)
            here = range(pair.first, pair.length)
            cells = [(site, position) for site in work.sites for position in here]
            exact = []
            for start in range(0, len(cells), REFERENCE_BATCH):
                part = cells[start : start + REFERENCE_BATCH]
                edits = [
                    replace(site, source.sites[site][:, p : p + 1], rows=[row], positions=[p])
                    for row, (site, p) in enumerate(part)
                ]
                exact.append(pair.prefers(oracle.run(pair.plural.repeat(len(part), 1), edits=edits).logits))
                done += len(part)
                if progress:
                    progress(done, total)
            out.patched("exact", i, torch.cat(exact))
            slopes = oracle.gradients(pair.plural, work.sites, pair.prefers)
            for layer, site in enumerate(work.sites):
                one, two, slope = (x[0].cpu().numpy() for x in (source.sites[site], target.sites[site], slopes[site]))
                out.result["estimate"][i, layer, here] = np.einsum("pd,pd->p", slope, one - two)[here]
                size = np.einsum("pd,pd->p", np.abs(slope), np.abs(one) + np.abs(two))
                out.result["slope"][i, layer, : pair.length] = size
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are those of logits, relative to the largest; of the estimate, those of its sum."""
        scale = reference["scale"]
        gap = np.abs(reference["singular"] - reference["plural"])
        estimates = np.fmax(scale[:, None, None], reference["slope"])
        scales = {"exact": scale[:, None, None], "estimate": estimates, "singular": scale, "plural": scale}
        return judged(result, reference, scales, dtype, ranking="exact", effect=float((gap / scale).min()))

    def known(self, reference: Result, work: Work) -> Known:
        """A gradient sees no further than the states nearby: Nanda 2023, and Kramar et al. 2024, arXiv:2403.00745.

        A patch of a whole early residual stream goes far, through norms and attention that saturate; later ones do not.
        """
        right = float(np.mean([reference["singular"] > 0, reference["plural"] < 0]))
        at_end = correlations(reference, work, end_only=True)
        (exact, *_), (estimated, *_) = (_shares(reference, work, name)[0] for name in ("exact", "estimate"))
        return Known(
            "the verb agrees in 0.8 of the sentences or more, across any attractor; at their end gradient and patching "
            "rank layers alike (mean rho above 0.8); at the subject after block 0 a patch restores 0.8 of the gap "
            "or more, and the gradient says less than half",
            f"{right:.2f} agree; rho is {at_end.mean():.2f} at the end; at the subject after block 0 a patch restores "
            f"{exact:.2f} of the difference, the gradient says {estimated:.2f}",
            bool(right >= 0.8 and at_end.mean() > 0.8 and exact > 0.8 and estimated < 0.5),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One patched forward: the plural, with the singular's residual stream of a middle layer at the end."""
        pair, site = work.pairs[0], work.sites[len(work.sites) // 2]
        value = lens.run(pair.singular, capture=site)[site][:, -1:]
        return lambda: lens.run(pair.plural, edits=[replace(site, value, positions=[-1])])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.pairs[0].plural)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (pair, layer, position): the token there, and what the patch adds, exactly and estimated."""
        return pd.DataFrame(
            [
                {"sentence": pair.id, "attractor": pair.attractor, "layer": layer, "position": position}
                | {"token": pair.tokens[position]}
                | {name: float(result[name][i, layer, position]) for name in ("exact", "estimate")}
                for i, pair in enumerate(work.pairs)
                for layer in range(len(work.sites))
                for position in range(pair.length)
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        at_subject, at_end = _shares(result, work, "exact")
        guessed = _shares(result, work, "estimate")[0][0]
        gaps = result["singular"] - result["plural"]
        one, two = (gaps[[pair.attractor == number for pair in work.pairs]].mean() for number in NUMBERS)
        moved = np.flatnonzero(at_end > at_subject)
        where = f"moves to the end at layer {moved[0]} of {len(at_end)}" if len(moved) else "stays at the subject"
        rho, at_end_rho = (float(np.mean(correlations(result, work, end_only=only))) for only in (False, True))
        return (
            f"the number {where}; gradient and patching rank states with rho = {rho:.2f}, {at_end_rho:.2f} at the end; "
            f"of the effect of the subject after block 0 ({at_subject[0]:.2f}) the gradient sees {guessed:.2f}; "
            f"subjects differ by {one:.1f} logits with a singular attractor, {two:.1f} with a plural one"
        )


def correlations(result: Result, work: Work, *, end_only: bool = False) -> NDArray[np.float64]:
    """(pair,) Spearman's correlation of exact and estimated effects, over layers and positions that can have one.

    Before the sentences differ no state has an effect, nor has one after the last block but at the end.

    Args:
        end_only: over the layers at the last position alone.
    """
    found = []
    for i, pair in enumerate(work.pairs):
        here = slice(pair.length - 1 if end_only else pair.first, pair.length)
        maps = (result[name][i, :, here] for name in ("exact", "estimate"))
        found.append(rank_agreement(*(np.append(m[:-1].ravel(), m[-1, -1]) for m in maps)))
    return np.array(found)


def _shares(result: Result, work: Work, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(layer,) share of the subjects' difference that a patch at the subject and at the end adds; mean over pairs."""
    gaps = result["singular"] - result["plural"]
    maps = [(result[name][i, :, pair.first : pair.length] / gaps[i]) for i, pair in enumerate(work.pairs)]
    return np.mean([m[:, 0] for m in maps], axis=0), np.mean([m[:, -1] for m in maps], axis=0)


def _difference(logits: Tensor, verbs: Tensor) -> Tensor:
    """(batch, pos, d_vocab), (batch, 2) -> (batch,) logit of the first verb less that of the second, at the end."""
    both = logits[:, -1].gather(1, verbs)
    return both[:, 0] - both[:, 1]


def _alike(work: Work) -> list[list[int]]:
    """Pairs that can go through the model together, and be patched at the same positions."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(work.pairs):
        groups.setdefault((pair.length, pair.first), []).append(i)
    return list(groups.values())


class _Figures:
    """Gathers the result, pair by pair."""

    def __init__(self, work: Work) -> None:
        self._work = work
        pairs = work.pairs
        self.result = {name: np.full(len(pairs), np.nan) for name in ("singular", "plural", "scale")}
        shape = len(pairs), len(work.sites), max(pair.length for pair in pairs)
        for name in ("exact", "estimate", "slope"):
            self.result[name] = np.full(shape, np.nan)
            for i, pair in enumerate(pairs):
                self.result[name][i, :, : pair.length] = 0.0  # what a patch that changes nothing adds

    def cells(self, pair: Pair) -> int:
        """How many cells of a pair's map have to be computed."""
        return len(self._work.sites) * (pair.length - pair.first)

    def sentences(self, rows: list[int], singular: Tensor, plural: Tensor) -> None:
        """Logits (pair, pos, d_vocab) of both sentences of these pairs."""
        for i, one, two in zip(rows, singular, plural, strict=True):
            prefers = self._work.pairs[i].prefers
            self.result["singular"][i] = float(prefers(one[None, -1:].double())[0])
            self.result["plural"][i] = float(prefers(two[None, -1:].double())[0])
            self.result["scale"][i] = float(two[-1].abs().max())

    def patched(self, name: str, i: int, values: Tensor) -> None:
        """(cell,) what the verb's logits differ by under each patch of pair i, layer by layer."""
        first, length = self._work.pairs[i].first, self._work.pairs[i].length
        effects = values.double().cpu().numpy() - self.result["plural"][i]
        self.result[name][i, :, first:length] = effects.reshape(-1, length - first)


def _pair(tokenizer: Any, sentence: Sentence, attractor: int, verbs: tuple[str, str]) -> Pair | None:
    """Both sentences; None where the tokenizer does not write them with equally many tokens."""
    (one, token), (two, same) = (fork("agreement", tokenizer, sentence.filled(s, attractor), verbs) for s in range(2))
    differ = [p for p, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or not differ or token != same:
        return None
    tokens = [tokenizer.decode([t]) for t in two]
    ids = torch.tensor([one]), torch.tensor([two])
    return Pair(sentence.id, NUMBERS[attractor], *ids, token, differ[0], tokens)
