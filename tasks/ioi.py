"""Indirect object identification: which layer and position, and which heads carry the name that decides the answer?

Two prompts differ in one name: after "When Mary and John went to the store, John gave a drink to" comes Mary; with Mary
in John's second place comes John. Activation patching puts what the clean prompt has in the residual stream, at one
layer and position, or in one head, into the corrupted one, and asks how much of the clean answer comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as edit_of
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosslens.adapters import Edit, InputError, Inspector, Run, replace

from . import data
from .base import Known, Progress, Result, Score, Size, Task
from .scoring import judged
from .sweeping import Metric, sweep
from .workload import architecture_for, bare_forward, site_names

PAIRS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 8})
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

    def cells(self, work: Work) -> list[tuple[int, int]]:
        """Every (layer, position)."""
        return [(layer, position) for layer in range(len(work.sites)) for position in range(self.length)]


@dataclass(frozen=True)
class Work:
    """The prompts.

    Attributes:
        pairs: of prompts.
        sites: names of every block's `resid_post`, in order of execution.
        heads: names of every block's `attn.z`, and the number of heads of each.
    """

    pairs: list[Pair]
    sites: list[str]
    heads: tuple[list[str], int]

    def head_cells(self) -> list[tuple[int, int]]:
        """Every (layer, head)."""
        return [(layer, head) for layer in range(len(self.heads[0])) for head in range(self.heads[1])]


class IOI(Task):
    """Result, with NaN at positions that a shorter pair lacks:

    recovered (pair, layer, position): (patched - corrupt) / (clean - corrupt), where each is the logit of the clean
        answer minus that of the corrupted one at the last position: 0, the patch does nothing; 1, it restores all.
    heads (layer, head): the same of the first pair, for one head patched at every position.
    clean, corrupt (pair,): those logit differences of the prompts themselves.
    scale (pair,): largest logit at the last position of the clean prompt, the measure of rounding.
    """

    name: ClassVar[str] = "ioi"
    question: ClassVar[str] = (
        "At which layer and position is the name that decides the answer, and which heads carry it?"
    )
    source: ClassVar[str] = "patching: Meng et al. 2022, arXiv:2202.05262; prompts: Wang et al. 2022, arXiv:2211.00593"
    categories: ClassVar[str] = "a clean and a corrupted prompt, which differ in one name"
    data: ClassVar[str] = "ioi-v1, 8 templates and 24 names written for crosslens after Wang et al., CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual", "capture.attention", "edit.replace", "edit.rows", "edit.positions", "edit.heads",
    )  # fmt: skip

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
        heads = site_names(architecture, "attn.z"), architecture.sizes["head"]
        return Work(pairs, site_names(architecture, "resid_post"), heads)

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """A sweep of every (layer, position) of each pair, and of every head of the first."""
        out = _Figures(work)
        total = sum(len(pair.cells(work)) for pair in work.pairs) + len(work.head_cells())
        before = 0
        for i, pair in enumerate(work.pairs):
            clean = lens.run(pair.clean, capture=[*work.sites, *(work.heads[0] if i == 0 else [])])
            out.prompts(i, clean.logits, lens.run(pair.corrupt).logits)
            cells, heads = pair.cells(work), work.head_cells() if i == 0 else []
            edits = [[_at_position(work, clean, *cell)] for cell in cells]
            edits += [[_at_head(work, clean, *cell)] for cell in heads]

            def told(done: int, _: int, before: int = before) -> None:
                if progress:
                    progress(before + done, total)

            found = sweep(lens, pair.corrupt, edits, out.metric(i), logits_at=[-1], progress=told)
            out.patched(i, cells, heads, found[:, 0])
            before += len(edits)
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, every (layer, position) a row of its own, in batches that mix layers.

        Positions before the first at which the prompts differ are left out: a causal model has the same residual stream
        there in both, the patch replaces a value by itself, and what it recovers is 0 by definition.
        """
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        out = _Figures(work)
        here = {i: [(ly, p) for ly, p in pair.cells(work) if p >= pair.changed[0]] for i, pair in enumerate(work.pairs)}
        total, before = sum(map(len, here.values())) + len(work.head_cells()), 0
        for i, pair in enumerate(work.pairs):
            clean = oracle.run(pair.clean)
            out.prompts(i, clean.logits, oracle.run(pair.corrupt).logits)
            cells, heads = here[i], work.head_cells() if i == 0 else []
            edits = [_at_position(work, clean.sites, *cell) for cell in cells]
            edits += [_at_head(work, clean.sites, *cell) for cell in heads]
            found = []
            for start in range(0, len(edits), REFERENCE_BATCH):
                part = [edit_of(edit, rows=[row]) for row, edit in enumerate(edits[start : start + REFERENCE_BATCH])]
                logits = oracle.run(pair.corrupt.repeat(len(part), 1), edits=part).logits
                found.append(out.metric(i)(logits))
                if progress:
                    progress(before + start + len(part), total)
            out.patched(i, cells, heads, torch.cat(found))
            before += len(edits)
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are those of logit differences, relative to the largest logit of the pair."""
        gap = np.abs(reference["clean"] - reference["corrupt"])
        scale = reference["scale"]
        scales = {
            "recovered": (scale / gap)[:, None, None], "heads": np.array(scale[0] / gap[0]),
            "clean": scale, "corrupt": scale,
        }  # fmt: skip
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
        layer, head = np.unravel_index(np.argmax(result["heads"]), result["heads"].shape)
        one = f"; of {result['heads'].size} heads, {layer}.{head} alone brings back {result['heads'].max():.2f} of it"
        if not len(later):
            return f"the answer stays at {name} through all {len(at_end)} layers{one}"
        return f"the answer moves from {name} to the last position around layer {later[0]} of {len(at_end)}{one}"


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
        self.result["heads"] = np.zeros((len(work.heads[0]), work.heads[1]))
        self.result["recovered"] = np.full((len(pairs), len(work.sites), max(p.length for p in pairs)), np.nan)
        for i, pair in enumerate(pairs):
            self.result["recovered"][i, :, : pair.length] = 0.0  # what a patch that changes nothing recovers

    def prompts(self, i: int, clean: Tensor, corrupt: Tensor) -> None:
        """Logits (1, pos, d_vocab) of both prompts of pair i."""
        metric = self.metric(i)
        self.result["clean"][i], self.result["corrupt"][i] = float(metric(clean)), float(metric(corrupt))
        self.result["scale"][i] = float(clean[0, -1].abs().max())

    def metric(self, i: int) -> Metric:
        """The logit of pair i's clean answer minus that of the corrupted one at the last position."""
        right, wrong = self._work.pairs[i].answers
        return lambda logits: logits[:, -1, right].double() - logits[:, -1, wrong].double()

    def patched(self, i: int, cells: list[tuple[int, int]], heads: list[tuple[int, int]], values: Tensor) -> None:
        """Metrics of pair i, patched at each (layer, position), then at each (layer, head)."""
        clean, corrupt = self.result["clean"][i], self.result["corrupt"][i]
        recovered = (values.cpu().numpy() - corrupt) / (clean - corrupt)
        layers, positions = np.array(cells).T
        self.result["recovered"][i, layers, positions] = recovered[: len(cells)]
        if heads:
            self.result["heads"][tuple(np.array(heads).T)] = recovered[len(cells) :]


def _at_position(work: Work, clean: Mapping[str, Tensor] | Run, layer: int, position: int) -> Edit:
    site = work.sites[layer]
    return replace(site, clean[site][:, position : position + 1], positions=[position])


def _at_head(work: Work, clean: Mapping[str, Tensor] | Run, layer: int, head: int) -> Edit:
    site = work.heads[0][layer]
    return replace(site, clean[site][:, :, head : head + 1], heads=[head])


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
