"""Induction: which heads look behind the last occurrence of a token, and does copying hang on them?

A random sequence said twice can be predicted in its second half by looking up what followed each token before, and in
no other way. An induction head attends from a token to the position after its first occurrence. Without the heads that
do, the loss should rise in the second half of a repeated sequence and nowhere else.
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

from crosslens.adapters import Edit, InputError, Inspector, zero

from .ablation import Chosen, edits_at, leading, losses, others
from .base import Known, Progress, Result, Score, Size, Task
from .scoring import judged
from .workload import architecture_for, bare_forward, site_names, timed

SEQUENCES: Mapping[Size, int] = MappingProxyType({"smoke": 2, "default": 4, "full": 12})
LENGTH: Mapping[Size, int] = MappingProxyType({"smoke": 12, "default": 25, "full": 25})
DRAWS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 5})
KINDS = ("repeated", "random")
SHARE = (1 / 45, 1 / 18)
"""Of all heads, at least and at most these are ablated: 6 to 15 of the 270 in SmolLM2-135M."""


@dataclass(frozen=True)
class Work:
    """The sequences.

    Attributes:
        ids: (2 n, pos) token ids: n repeated sequences, then n random ones, each after the token that begins a text
            where the tokenizer has one. Sequence n + i has the second half of sequence i.
        length: tokens of one half.
        draws: how often other heads are drawn.
        patterns, z: names of these sites of every block.
        heads: in a layer.
        least, most: how many heads are ablated.
    """

    ids: Tensor
    length: int
    draws: int
    patterns: list[str]
    z: list[str]
    heads: int
    least: int
    most: int

    @property
    def second(self) -> int:
        """Position at which the second half begins."""
        return int(self.ids.shape[1]) - self.length

    @property
    def conditions(self) -> list[str]:
        """What is ablated."""
        return ["nothing", "induction heads", *(f"other heads {draw + 1}" for draw in range(self.draws))]


class Induction(Task):
    """Result, all figures means over sequences:

    score (kind, layer, head): attention from each token of the second half to the position after the one that stands
        where its first occurrence does in a repeated sequence, mean over the half, 0 to 1. kind: repeated, random.
    loss (condition, kind, token): of each token but the first, in nats, under each condition of `Work.conditions`.
    scale (): largest logit, the measure of rounding.
    """

    name: ClassVar[str] = "induction"
    question: ClassVar[str] = "Which heads continue a sequence as it went before, and does its prediction hang on them?"
    source: ClassVar[str] = "Olsson et al. 2022, arXiv:2209.11895"
    categories: ClassVar[str] = "random sequences said twice, and random sequences with the same second half"
    data: ClassVar[str] = "seeded random tokens of the model's own vocabulary"
    needs: ClassVar[tuple[str, ...]] = ("capture.pattern", "edit.zero", "edit.heads")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """Random tokens, no token twice in a half, none in both halves of a random sequence, none of them special.

        Raises:
            InputError: no tokenizer, a model without canonical sites or with fewer than four heads, or too few tokens.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        heads, layers = architecture.sizes["head"], architecture.sizes["n_layers"]
        if heads * layers < 4:
            raise InputError(f"task {self.name!r} compares heads with others; this model has {heads * layers} in all")
        n, length = SEQUENCES[size], LENGTH[size]
        special = set(tokenizer.all_special_ids)
        ordinary = [t for t in range(min(len(tokenizer), architecture.sizes["d_vocab"])) if t not in special]
        if len(ordinary) < 2 * length:
            raise InputError(
                f"task {self.name!r} needs {2 * length} different tokens; the tokenizer has {len(ordinary)} that are "
                "not special"
            )
        draw = np.random.default_rng(0)
        tokens = np.stack([draw.choice(ordinary, 2 * length, replace=False) for _ in range(n)])
        again = np.concatenate([tokens[:, length:], tokens[:, length:]], axis=1)
        ids = torch.from_numpy(np.concatenate([again, tokens]))
        if tokenizer.bos_token_id is not None:
            ids = torch.cat([torch.full((2 * n, 1), tokenizer.bos_token_id), ids], dim=1)
        least, most = (max(1 + i, round(share * heads * layers)) for i, share in enumerate(SHARE))
        patterns, z = site_names(architecture, "attn.pattern"), site_names(architecture, "attn.z")
        return Work(ids, length, DRAWS[size], patterns, z, heads, least, most)

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One forward for the patterns, then one for each condition."""
        steps = len(work.conditions) + 1
        seen = lens.run(work.ids, capture=work.patterns)
        queries = torch.arange(work.second, work.ids.shape[1])
        found = []
        for site in work.patterns:
            looked = seen[site][:, :, queries, queries - work.length + 1].double()  # row, head, query
            found.append(looked.mean(-1).unflatten(0, (2, -1)).mean(1).cpu().numpy())
        score = np.stack(found, axis=1)
        del seen
        if progress:
            progress(1, steps)
        loss, scale = [], 0.0
        for done, edits in enumerate(_conditions(score, work), start=2):
            logits = lens.run(work.ids, edits=edits).logits
            scale = scale or float(logits.abs().max())
            loss.append(np.stack(list(losses(logits, work.ids))))
            if progress:
                progress(done, steps)
        return {"score": score, "loss": _by_kind(loss), "scale": np.array(scale)}

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, sequence by sequence; patterns by that of eager attention, as a backend shows them."""
        from crosslens.adapters.conformance.oracle import Oracle

        n, steps = len(work.ids) // 2, len(work.ids) * (len(work.conditions) + 1)
        score = np.zeros((2, len(work.patterns), work.heads))
        oracle = Oracle(model, attn_implementation="eager")
        for row, ids in enumerate(work.ids):
            sites = oracle.run(ids[None]).sites
            for layer, site in enumerate(work.patterns):
                after = sites[site][0].diagonal(1 - work.length, dim1=1, dim2=2)[:, 1:]  # head, query
                score[row // n, layer] += after[:, work.second - work.length :].mean(1).cpu().numpy() / n
            if progress:
                progress(row + 1, steps)
        oracle, loss, scale = Oracle(model), [], 0.0
        for i, edits in enumerate(_conditions(score, work), start=1):
            rows = []
            for row, ids in enumerate(work.ids):
                logits = oracle.run(ids[None], edits=edits).logits[0]
                scale = max(scale, float(logits.abs().max())) if i == 1 else scale
                rows.append(nn.functional.cross_entropy(logits[:-1], ids[1:].to(logits.device), reduction="none").cpu())
                if progress:
                    progress(i * len(work.ids) + row + 1, steps)
            loss.append(torch.stack(rows).numpy())
        return {"score": score, "loss": _by_kind(loss), "scale": np.array(scale)}

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise of losses are those of logits, relative to the largest; of scores, those of a share of 1.

        The effect is what the found heads' ablation adds to the second half, or the highest score if that is smaller.
        """
        scale = float(reference["scale"])
        rise = _rises(reference, work)
        effect = min(abs(rise["repeated", "second"][0]) / scale, float(reference["score"][0].max()))
        scales = {"score": 1.0, "loss": scale, "scale": scale}
        return judged(result, reference, scales, dtype, ranking="score", effect=effect)

    def known(self, reference: Result, work: Work) -> Known:
        """Models of two layers or more have them, and in small ones they make most of in-context learning."""
        best = float(reference["score"][0].max())
        rise = _rises(reference, work)
        second, other = rise["repeated", "second"]
        elsewhere = max((r[0] for key, r in rise.items() if key != ("repeated", "second")), key=abs)
        return Known(
            "some head has an induction score above 0.5, and ablating the found heads adds 1 nat or more to the loss "
            "of a repeated second half, 3 times what it adds elsewhere or what as many other heads of its layers do",
            f"the best score is {best:.2f}; ablation adds {second:.2f} nats to the repeated half, {elsewhere:.2f} "
            f"where it adds most elsewhere; that of other heads {other:.2f}",
            bool(best > 0.5 and second > 1 and second > 3 * abs(elsewhere) and second > 3 * abs(other)),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One forward of repeated sequences with one head of each layer ablated."""
        inputs = timed({"input_ids": work.ids})
        return lambda: lens.run(inputs, edits=[zero(site, heads=[0]) for site in work.z])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, timed({"input_ids": work.ids}))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """`score` of every (sequences, layer, head), and `loss` of every (sequences, ablated, half), one a row.

        Columns: measure, sequences, layer, head, found: whether it is among the ablated heads; ablated, half, value.
        What a measure does not have is missing.
        """
        found = _found(result["score"], work)
        scores = [
            {"measure": "score", "sequences": kind, "layer": layer, "head": head, "found": bool(found[layer, head])}
            | {"value": float(result["score"][k, layer, head])}
            for k, kind in enumerate(KINDS)
            for layer, head in np.ndindex(found.shape)
        ]
        rows = [
            {"measure": "loss", "sequences": kind, "ablated": condition, "half": half, "value": float(value[c])}
            for (kind, half), value in _halves(result, work).items()
            for c, condition in enumerate(work.conditions)
        ]
        columns = ["measure", "sequences", "layer", "head", "found", "ablated", "half", "value"]
        table = pd.DataFrame(scores + rows, columns=columns)
        return table.astype({"layer": "Int64", "head": "Int64", "found": "boolean"})

    def headline(self, result: Result, work: Work) -> str:
        scores, found = result["score"][0], _found(result["score"], work)
        layer, head = np.unravel_index(scores.argmax(), scores.shape)
        rise = _rises(result, work)
        (second, other), first = rise["repeated", "second"], rise["repeated", "first"][0]
        return (
            f"{found.sum()} of {found.size} heads continue what was said, above all head {head} of layer {layer} "
            f"({scores.max():.2f}); without them the second half costs {second:+.2f} nats a token, the first "
            f"{first:+.2f}; without as many others {other:+.2f}"
        )


def _found(score: NDArray[np.float64], work: Work) -> Chosen:
    """(layer, head): the heads to be ablated."""
    return leading(score[0], work.least, work.most)


def _conditions(score: NDArray[np.float64], work: Work) -> list[list[Edit]]:
    """The edits of each condition."""
    found = _found(score, work)
    ablated = [found, *(others(found, draw) for draw in range(work.draws))]
    return [[], *(edits_at(heads, lambda layer, which: zero(work.z[layer], heads=which)) for heads in ablated)]


def _by_kind(loss: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(condition, kind, token) from (row, token) of each condition."""
    stacked = np.stack(loss)
    return np.asarray(stacked.reshape(len(loss), 2, -1, stacked.shape[-1]).mean(axis=2))


def _halves(result: Result, work: Work) -> dict[tuple[str, str], NDArray[np.float64]]:
    """(kind, half) -> (condition,) mean loss. The first token of the second half cannot be known and is in neither."""
    first, second = slice(0, work.second - 1), slice(work.second, None)  # token t has its loss at t - 1
    return {
        (kind, half): result["loss"][:, k, part].mean(axis=-1)
        for k, kind in enumerate(KINDS)
        for half, part in (("first", first), ("second", second))
    }


def _rises(result: Result, work: Work) -> dict[tuple[str, str], tuple[float, float]]:
    """(kind, half) -> what ablation adds to the loss: of the found heads, and of as many others, mean over draws."""
    return {
        key: (float(loss[1] - loss[0]), float(loss[2:].mean() - loss[0])) for key, loss in _halves(result, work).items()
    }
