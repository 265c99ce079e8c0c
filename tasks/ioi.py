"""Indirect object identification: which layer and position carry the name that decides the answer?

Two prompts differ in one name: after "When Mary and John went to the store, John gave a drink to" comes Mary; with Mary
in John's second place comes John. Activation patching puts what the clean prompt has in the residual stream, at one
layer and position, into the corrupted one, and asks how much of the clean answer comes back.
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

from crosslens.adapters import InputError, Inspector, replace

from . import data
from .base import Known, Progress, Result, Score, Size, Task
from .scoring import judged
from .workload import architecture_for, bare_forward, site_names

PAIRS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 3, "full": 8})
REFERENCE_BATCH = 32


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt of equal length.

    Attributes:
        id: of the template.
        clean, corrupt: (1, pos) token ids.
        answers: token ids of what comes next, in the clean and in the corrupted prompt.
        changed: positions at which the prompts differ: one, where the tokenizer has a token for each name.
        tokens: the corrupted prompt, token by token.
    """

    id: str
    clean: Tensor
    corrupt: Tensor
    answers: tuple[int, int]
    changed: list[int]
    tokens: list[str]

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.tokens)


@dataclass(frozen=True)
class Work:
    """The prompts.

    Attributes:
        pairs: of prompts.
        sites: names of every block's `resid_post`, in order of execution.
    """

    pairs: list[Pair]
    sites: list[str]


class IOI(Task):
    """Result, with NaN at positions that a shorter pair lacks:

    recovered (pair, layer, position): (patched - corrupt) / (clean - corrupt), where each is the logit of the clean
        answer minus that of the corrupted one at the last position: 0, the patch does nothing; 1, it restores all.
    clean, corrupt (pair,): those logit differences of the prompts themselves.
    scale (pair,): largest logit at the last position of the clean prompt, the measure of rounding.
    """

    name: ClassVar[str] = "ioi"
    question: ClassVar[str] = "At which layer and position is the name that decides the answer?"
    source: ClassVar[str] = "patching: Meng et al. 2022, arXiv:2202.05262; prompts: Wang et al. 2022, arXiv:2211.00593"
    categories: ClassVar[str] = "a clean and a corrupted prompt, which differ in one name"
    data: ClassVar[str] = "ioi-v1, 8 templates and 24 names written for crosslens after Wang et al., CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ("capture.residual", "edit.replace", "edit.rows", "edit.positions")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """One pair of prompts for each of the first templates, with names that are single tokens where there are such.

        Raises:
            InputError: no tokenizer, or a model without canonical sites.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        prompts = data.read_prompts()
        names = _alike(tokenizer, prompts.names)
        pairs = [
            _pair(tokenizer, key, template, names[2 * i % len(names)], names[(2 * i + 1) % len(names)])
            for i, (key, template) in enumerate(list(prompts.templates.items())[: PAIRS[size]])
        ]
        return Work(pairs, site_names(architecture, "resid_post"))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One forward a layer: row p of the batch is the corrupted prompt, patched at position p."""
        out = _Figures(work)
        for i, pair in enumerate(work.pairs):
            clean = lens.run(pair.clean, capture=work.sites)
            out.prompts(i, clean.logits, lens.run(pair.corrupt).logits)
            batch = pair.corrupt.repeat(pair.length, 1)
            for layer, site in enumerate(work.sites):
                value = clean[site]
                edits = [replace(site, value[:, p : p + 1], rows=[p], positions=[p]) for p in range(pair.length)]
                cells = [(layer, p) for p in range(pair.length)]
                out.patched(i, cells, lens.run(batch, edits=edits).logits)
                if progress:
                    progress(i * len(work.sites) + layer + 1, len(work.pairs) * len(work.sites))
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, every (layer, position) a row of its own, in batches that mix layers.

        Positions before the first at which the prompts differ are left out: a causal model has the same residual stream
        there in both, the patch replaces a value by itself, and what it recovers is 0 by definition.
        """
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        out = _Figures(work)
        for i, pair in enumerate(work.pairs):
            clean = oracle.run(pair.clean)
            out.prompts(i, clean.logits, oracle.run(pair.corrupt).logits)
            here = range(pair.changed[0], pair.length)
            cells = [(layer, position) for layer in range(len(work.sites)) for position in here]
            for start in range(0, len(cells), REFERENCE_BATCH):
                part = cells[start : start + REFERENCE_BATCH]
                edits = [
                    replace(site, clean.sites[site][:, p : p + 1], rows=[row], positions=[p])
                    for row, (site, p) in enumerate((work.sites[layer], p) for layer, p in part)
                ]
                logits = oracle.run(pair.corrupt.repeat(len(part), 1), edits=edits).logits
                out.patched(i, part, logits)
                if progress:
                    progress(i * len(cells) + start + len(part), len(work.pairs) * len(cells))
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are those of logit differences, relative to the largest logit of the pair."""
        gap = np.abs(reference["clean"] - reference["corrupt"])
        scale = reference["scale"]
        scales = {"recovered": (scale / gap)[:, None, None], "clean": scale, "corrupt": scale}
        return judged(result, reference, scales, dtype, ranking="recovered", effect=float((gap / scale).min()))

    def known(self, reference: Result, work: Work) -> Known:
        """Behind the last block only the last position is left to read the answer from, whatever was said before."""
        at_name, at_end = curves(reference, work)
        return Known(
            "a patch restores 0.8 of the answer or more at the changed name early, and at the last position late",
            f"{at_name[0]:.2f} at the name after block 0, {at_end[-1]:.2f} at the end after the last block, "
            f"{at_end[0]:.2f} there after block 0",
            bool(at_name[0] > 0.8 and at_end[-1] > 0.8 and abs(at_end[0]) < 0.2),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One patched forward: the corrupted prompt, with the clean residual stream of the middle layer at its end."""
        pair, site = work.pairs[0], work.sites[len(work.sites) // 2]
        value = lens.run(pair.clean, capture=site)[site][:, -1:]
        return lambda: lens.run(pair.corrupt, edits=[replace(site, value, positions=[-1])])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.pairs[0].corrupt)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (pair, layer, position): the token there, whether it differs, and what is recovered."""
        return pd.DataFrame(
            [
                {
                    "pair": pair.id,
                    "layer": layer,
                    "position": position,
                    "token": pair.tokens[position],
                    "changed": position in pair.changed,
                    "recovered": float(result["recovered"][i, layer, position]),
                }
                for i, pair in enumerate(work.pairs)
                for layer in range(len(work.sites))
                for position in range(pair.length)
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        at_name, at_end = curves(result, work)
        pair = work.pairs[0]
        name = f"the changed name ({pair.tokens[pair.changed[0]]!r}, position {pair.changed[0]} of {pair.length})"
        later = np.flatnonzero(at_end > at_name)
        if not len(later):
            return f"the answer stays at {name} through all {len(at_end)} layers"
        return f"the answer moves from {name} to the last position around layer {later[0]} of {len(at_end)}"


def curves(result: Result, work: Work) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(layer,) recovered at the changed name, and at the last position; means over pairs.

    Where the name is several tokens, its strongest position counts.
    """
    maps = result["recovered"]
    at_name = np.mean([maps[i][:, pair.changed].max(axis=1) for i, pair in enumerate(work.pairs)], axis=0)
    at_end = np.mean([maps[i][:, pair.length - 1] for i, pair in enumerate(work.pairs)], axis=0)
    return at_name, at_end


class _Figures:
    """Gathers the result, pair by pair."""

    def __init__(self, work: Work) -> None:
        pairs = work.pairs
        self._work = work
        self.result = {name: np.full(len(pairs), np.nan) for name in ("clean", "corrupt", "scale")}
        self.result["recovered"] = np.full((len(pairs), len(work.sites), max(p.length for p in pairs)), np.nan)
        for i, pair in enumerate(pairs):
            self.result["recovered"][i, :, : pair.length] = 0.0  # what a patch that changes nothing recovers

    def prompts(self, i: int, clean: Tensor, corrupt: Tensor) -> None:
        """Logits (1, pos, d_vocab) of both prompts of pair i."""
        self.result["clean"][i] = self._difference(i, clean)[0]
        self.result["corrupt"][i] = self._difference(i, corrupt)[0]
        self.result["scale"][i] = float(clean[0, -1].abs().max())

    def patched(self, i: int, cells: list[tuple[int, int]], logits: Tensor) -> None:
        """Logits (cell, pos, d_vocab) of pair i, each row patched at one (layer, position)."""
        clean, corrupt = self.result["clean"][i], self.result["corrupt"][i]
        layers, positions = np.array(cells).T
        recovered = (self._difference(i, logits) - corrupt) / (clean - corrupt)
        self.result["recovered"][i, layers, positions] = recovered

    def _difference(self, i: int, logits: Tensor) -> NDArray[np.float64]:
        right, wrong = self._work.pairs[i].answers
        last = logits[:, -1].double()
        return (last[:, right] - last[:, wrong]).cpu().numpy()


def _alike(tokenizer: Any, names: tuple[str, ...]) -> list[str]:
    """The names that take as few tokens as two of them can: one, for tokenizers with a token for each name."""
    bare = len(tokenizer("and")["input_ids"])
    by_length: dict[int, list[str]] = {}
    for name in names:
        by_length.setdefault(len(tokenizer(f"and {name}")["input_ids"]) - bare, []).append(name)
    return next(alike for _, alike in sorted(by_length.items()) if len(alike) > 1)


def _pair(tokenizer: Any, key: str, template: str, first: str, second: str) -> Pair:
    clean, answer = _prompt(tokenizer, template.format(A=first, B=second, S=second), first, second)
    corrupt, other = _prompt(tokenizer, template.format(A=first, B=second, S=first), second, first)
    changed = [p for p, (a, b) in enumerate(zip(clean, corrupt, strict=False)) if a != b]
    if len(clean) != len(corrupt) or not changed:
        raise InputError(
            f"task 'ioi', prompt {key!r}: with {first!r} and {second!r} exchanged the tokenizer makes {len(clean)} and "
            f"{len(corrupt)} tokens, of which {len(changed)} differ; a patch needs equally many, and a difference"
        )
    tokens = [tokenizer.decode([token]) for token in corrupt]
    return Pair(key, torch.tensor([clean]), torch.tensor([corrupt]), (answer, other), changed, tokens)


def _prompt(tokenizer: Any, text: str, right: str, wrong: str) -> tuple[list[int], int]:
    """The tokens that the text has in common before either answer, and the token with which the right one begins.

    Where names of several tokens begin alike, the prompt goes on to where they part.
    """
    ids, other = (list(tokenizer(f"{text} {name}")["input_ids"]) for name in (right, wrong))
    parts = next((p for p, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), None)
    if parts is None:
        raise InputError(f"task 'ioi': the tokenizer writes {right!r} and {wrong!r} alike after {text!r}")
    return ids[:parts], ids[parts]
