"""Steering: add the difference of two categories' means while the model writes; how far does the text go along?

The direction is the mean residual stream of positive sentences less that of negative ones, at a middle layer and the
last position. It is added, at several strengths, at the prompt's last position and at every generated one. A random
direction of the same length shows how much of the effect any push has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosslens.adapters import Edit, InputError, Inspector, add

from .base import Known, Progress, Result, Score, Size, Task
from .continuations import asked, followed, margins
from .data.prompts import Sentiment, read_sentiment
from .effects import rounding
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, site_names

OPENINGS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 6})
PAIRS: Mapping[Size, int] = MappingProxyType({"smoke": 2, "default": 12, "full": 24})
NEW: Mapping[Size, int] = MappingProxyType({"smoke": 4, "default": 8, "full": 8})
STRENGTHS = (-4.0, -2.0, 0.0, 2.0, 4.0)
"""Multiples of the difference of means."""
UNSTEERED = STRENGTHS.index(0.0)
BATCH = 8


@dataclass(frozen=True)
class Work:
    """Tokenised sentences and openings.

    Attributes:
        site: name of the middle block's `resid_post`.
        batches: of sentences, sorted by length; even rows are positive, odd ones negative.
        openings: texts.
        prompts: (1, pos) token ids of each.
        new: number of tokens to generate.
        words: first tokens of the positive and of the negative words, none in both.
        random: (opening, d_model) unit vectors.
        tokenizer: the caller's, to show texts with.
    """

    site: str
    batches: list[Batch]
    openings: list[str]
    prompts: list[Tensor]
    new: int
    words: tuple[Tensor, Tensor]
    random: Tensor
    tokenizer: Any = field(repr=False)


class Steering(Task):
    """Result, over (opening, strength, new token) in the order of `Work.openings` and `STRENGTHS`:

    tokens: greedy, with a cache.
    margin: by how much each token's logit exceeds the next.
    gap: mean logit of the positive words less that of the negative ones, where the token was chosen.
    scale: largest absolute logit there, the measure of rounding.
    loss (opening, strength): of the text, under the model without steering, in nats a token: the fluency guard.
    gap_random (opening, strength): of the first new token, with a random direction in place of the difference of means.
    tokens_uncached, gap_uncached (strength, new token): the first opening, without a cache.
    direction (d_model,), stream (): the difference of means, and the largest activation that went into it.
    """

    name: ClassVar[str] = "steering"
    question: ClassVar[str] = "How far does adding a direction move what the model writes, and what does it cost?"
    source: ClassVar[str] = (
        "activation addition: Turner et al. 2023, arXiv:2308.10248; difference of means: Rimsky et al. 2023, "
        "arXiv:2312.06681"
    )
    categories: ClassVar[str] = "positive and negative sentences that differ in one word"
    data: ClassVar[str] = "sentiment-v1, 24 pairs of sentences and 6 openings written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual",
        "padding.right",
        "edit.add",
        "edit.positions",
        "generate",
        "generate.edit",
        "generate.uncached",
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first pairs of sentences and the first openings.

        Raises:
            InputError: no tokenizer, a model without canonical sites, or a tokenizer that begins the words of both
                sentiments with the same tokens.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        sentiment = read_sentiment()
        sentences = [text for pair in list(sentiment.pairs.values())[: PAIRS[size]] for text in pair]
        ids = [list(tokenizer(text)["input_ids"]) for text in sentences]
        sites = site_names(architecture, "resid_post")
        openings = list(sentiment.openings[: OPENINGS[size]])
        word = sentiment.positive[0]
        random = np.random.default_rng(0).normal(size=(len(openings), architecture.sizes["d_model"]))
        return Work(
            site=sites[len(sites) // 2],
            batches=batches(ids, tokenizer, BATCH),
            openings=openings,
            prompts=[torch.tensor([asked(self.name, tokenizer, text, word)[0]]) for text in openings],
            new=NEW[size],
            words=_word_tokens(tokenizer, sentiment, openings[0]),
            random=torch.from_numpy(random / np.linalg.norm(random, axis=1, keepdims=True)),
            tokenizer=tokenizer,
        )

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """All strengths of an opening are rows of one generation."""
        last = _rows(work, lambda inputs: lens.run(inputs, capture=work.site).at(work.site, [-1])[:, 0].double())
        out = _Figures(work, last)
        dtype = next(lens.model.parameters()).dtype
        for i, prompt in enumerate(work.prompts):
            batch = prompt.repeat(len(STRENGTHS), 1)
            edits = [_steer(work, out.direction, prompt, dtype)]
            found = lens.generate(batch, max_new_tokens=work.new, edits=edits)
            out.texts(i, found.new_tokens, found.logits)
            out.losses(i, found.tokens, lens.run(found.tokens).logits)
            out.random(i, lens.run(batch, edits=[_steer(work, out.pushed(i), prompt, dtype, new=1)]).logits)
            if i == 0:
                again = lens.generate(batch, max_new_tokens=work.new, edits=edits, use_cache=False)
                out.uncached(again.new_tokens, again.logits)
            if progress:
                progress(i + 1, len(work.prompts))
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle: every step reads the whole text again, without a cache, and sentences go unpadded."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        rows = {row: ids for batch in work.batches for row, ids in zip(batch.rows, batch.unpadded(), strict=True)}
        out = _Figures(work, [oracle.run(rows[row][None]).sites[work.site][0, -1] for row in range(len(rows))])
        for i, prompt in enumerate(work.prompts):
            edits = [_steer(work, out.direction, prompt, torch.float64)]
            batch = prompt.repeat(len(STRENGTHS), 1)
            tokens, run = oracle.generate(batch, work.new, edits=edits)
            new, logits = tokens[:, -work.new :], run.logits[:, -work.new :]
            out.texts(i, new, logits)
            out.losses(i, tokens, oracle.run(tokens).logits)
            out.random(i, oracle.run(batch, edits=[_steer(work, out.pushed(i), prompt, torch.float64, new=1)]).logits)
            if i == 0:
                out.uncached(new, logits)
            if progress:
                progress(i + 1, len(work.prompts))
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors are relative to the largest logit where the token was chosen; texts may part where two tokens tie.

        The effect is by how much the gap differs between the strongest steering either way, at the first new token.
        """
        scale = reference["scale"]
        ends = np.abs(reference["gap"][:, -1, 0] - reference["gap"][:, 0, 0]) / scale[:, :, 0].max(axis=1)
        scales = {
            "gap": scale,
            "margin": scale,
            "scale": scale,
            "loss": scale.max(axis=2),
            "gap_random": scale[:, :, 0],
            "gap_uncached": scale[0],
            "direction": reference["stream"],
        }
        compared, fair = _comparable(result, reference, 2 * rounding(dtype) * scale)
        score = judged(compared, reference, scales, dtype, ranking="gap", effect=float(ends.min()))
        return dataclasses.replace(score, right=score.right and fair)

    def known(self, reference: Result, work: Work) -> Known:
        """As Rimsky et al. find, behaviour moves with the multiplier in both directions."""
        gap, random = reference["gap"][:, :, 0].mean(axis=0), reference["gap_random"]
        moved, by_chance = gap[-1] - gap[0], np.abs(random[:, -1] - random[:, 0]).mean()
        cost = reference["loss"].mean(axis=0) - reference["loss"][:, UNSTEERED].mean()
        mild = float(np.abs(cost[UNSTEERED - 1 : UNSTEERED + 2]).max())
        return Known(
            f"from strength {STRENGTHS[0]:+g} to {STRENGTHS[-1]:+g} positive words rise over negative ones at every "
            "step, in all twice as far as a random direction moves them; mildly steered text costs 1 nat more at most",
            f"gaps {', '.join(f'{g:+.2f}' for g in gap)}: {moved:.2f} in all, {by_chance:.2f} by a random direction; "
            f"{mild:.2f} nats at {STRENGTHS[UNSTEERED + 1]:g} either way",
            bool((np.diff(gap) > 0).all() and moved > 2 * by_chance and mild <= 1),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One steered forward of the first opening, all strengths as rows."""
        prompt = work.prompts[0]
        batch = prompt.repeat(len(STRENGTHS), 1)
        dtype = next(lens.model.parameters()).dtype
        stream = lens.run(batch, capture=work.site)[work.site]
        value = torch.tensor(STRENGTHS, dtype=dtype, device=stream.device)[:, None, None] * stream[:, -1:]
        return lambda: lens.run(batch, edits=[add(work.site, value, positions=[-1])])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.prompts[0].repeat(len(STRENGTHS), 1))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (opening, strength).

        Columns: gap_first, where all strengths have the same text before them; gap_random, the same with a random
        direction; gap, its mean over the new tokens; loss, in nats a token under the unsteered model; text.
        """
        return pd.DataFrame(
            [
                {
                    "opening": opening,
                    "strength": strength,
                    "gap_first": float(result["gap"][i, j, 0]),
                    "gap_random": float(result["gap_random"][i, j]),
                    "gap": float(result["gap"][i, j].mean()),
                    "loss": float(result["loss"][i, j]),
                    "text": work.tokenizer.decode(result["tokens"][i, j].astype(int).tolist()),
                }
                for i, opening in enumerate(work.openings)
                for j, strength in enumerate(STRENGTHS)
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        gap, loss = result["gap"][:, :, 0].mean(axis=0), result["loss"].mean(axis=0)
        random = result["gap_random"].mean(axis=0)
        return (
            f"at {work.site}, strengths {', '.join(f'{s:+g}' for s in STRENGTHS)} put positive words "
            f"{', '.join(f'{g:+.2f}' for g in gap)} logits over negative ones (a random direction: "
            f"{random[0]:+.2f} to {random[-1]:+.2f}); the text costs "
            f"{', '.join(f'{x:.2f}' for x in loss)} nats a token"
        )


def _word_tokens(tokenizer: Any, sentiment: Sentiment, opening: str) -> tuple[Tensor, Tensor]:
    one, two = (
        {asked("steering", tokenizer, opening, word)[1] for word in words}
        for words in (sentiment.positive, sentiment.negative)
    )
    if not one - two or not two - one:
        raise InputError("task 'steering': the tokenizer begins positive and negative words with the same tokens")
    return torch.tensor(sorted(one - two)), torch.tensor(sorted(two - one))


def _steer(work: Work, direction: Tensor, prompt: Tensor, dtype: torch.dtype, new: int | None = None) -> Edit:
    """Adds each row's multiple of the direction at absolute positions: the prompt's last, and all that follow.

    Args:
        new: number of tokens that will be generated, if not all of the work's.
    """
    new = work.new if new is None else new
    positions = range(prompt.shape[1] - 1, prompt.shape[1] - 1 + new)
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64, device=direction.device)[:, None, None]
    value = (strengths * direction).expand(-1, new, -1)  # strength, position, d_model
    return add(work.site, value.to(dtype), positions=positions)


def _rows(work: Work, compute: Callable[[Mapping[str, Tensor]], Tensor]) -> list[Tensor]:
    """What `compute` makes of each sentence's row."""
    found: dict[int, Tensor] = {}
    for batch in work.batches:
        found.update(zip(batch.rows, compute(batch.inputs), strict=True))
    return [found[row] for row in range(len(found))]


def _comparable(result: Result, reference: Result, tolerance: NDArray[np.float64]) -> tuple[Result, bool]:
    """The result with the reference's figures where its text had parted before, and whether it parted at ties only."""
    right, margin = reference["tokens"], reference["margin"]
    before, fair = followed(result["tokens"], right, margin, tolerance)
    uncached, fair_uncached = followed(result["tokens_uncached"], right[0], margin[0], tolerance[0])
    whole = (result["tokens"] == right).all(axis=2)
    where = {"gap": before, "margin": before, "scale": before, "loss": whole, "gap_uncached": uncached}
    kept = {name: np.where(here, result[name], reference[name]) for name, here in where.items()}
    return {**result, **kept}, fair and fair_uncached


class _Figures:
    """Gathers the result, opening by opening."""

    def __init__(self, work: Work, last: list[Tensor]) -> None:
        """`last` (d_model,): what each sentence has at the site and its last position."""
        rows = torch.stack(last)
        self._work = work
        self.direction = rows[0::2].mean(0) - rows[1::2].mean(0)
        shape = len(work.prompts), len(STRENGTHS), work.new
        self.result = {name: np.full(shape, np.nan) for name in ("tokens", "margin", "gap", "scale")}
        self.result |= {name: np.full(shape[:2], np.nan) for name in ("loss", "gap_random")}
        self.result["direction"] = self.direction.cpu().numpy()
        self.result["stream"] = rows.abs().max().cpu().numpy()

    def texts(self, i: int, tokens: Tensor, logits: Tensor) -> None:
        """Tokens (strength, new) of opening i, and the logits (strength, new, d_vocab) they were chosen from."""
        figures = {
            "tokens": tokens,
            "margin": margins(logits),
            "gap": self._gap(logits),
            "scale": logits.abs().amax(-1),
        }
        for name, found in figures.items():
            self.result[name][i] = found.double().cpu().numpy()

    def losses(self, i: int, tokens: Tensor, logits: Tensor) -> None:
        """Whole texts (strength, pos) and the unsteered model's logits over them."""
        new = self.result["tokens"].shape[2]
        logprob = logits.double().log_softmax(-1)[:, -new - 1 : -1]
        own = logprob.gather(2, tokens[:, -new:, None].to(logits.device))[..., 0]  # strength, new
        self.result["loss"][i] = -own.mean(1).cpu().numpy()

    def pushed(self, i: int) -> Tensor:
        """(d_model,) a random direction as long as the difference of means."""
        vector: Tensor = self._work.random[i].to(self.direction) * self.direction.norm()
        return vector

    def random(self, i: int, logits: Tensor) -> None:
        """Logits (strength, pos, d_vocab) of opening i with `pushed` added at its last position."""
        self.result["gap_random"][i] = self._gap(logits[:, -1]).cpu().numpy()

    def uncached(self, tokens: Tensor, logits: Tensor) -> None:
        """As `texts`, of the first opening without a cache."""
        self.result["tokens_uncached"] = tokens.double().cpu().numpy()
        self.result["gap_uncached"] = self._gap(logits).cpu().numpy()

    def _gap(self, logits: Tensor) -> Tensor:
        one, two = (logits[..., words.to(logits.device)].double().mean(-1) for words in self._work.words)
        return one - two
