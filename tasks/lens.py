"""Logit lens: read every layer's residual stream as if it were the last; where does the answer first appear?

The final norm and the unembedding turn what leaves each block, at the prompt's last position, into logits. The same
answers are asked for twice: to be recalled from memory, and to be copied from the prompt.
"""

from __future__ import annotations

import dataclasses
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

from crosslens.adapters import InputError, Inspector, replace
from crosslens.adapters.architectures import Architecture

from .base import Known, Progress, Result, Score, Size, Task
from .continuations import asked
from .data.prompts import read_answers
from .effects import rounding
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, dtype_of, middling, site_names

ANSWERS: Mapping[Size, int] = MappingProxyType({"smoke": 2, "default": 12, "full": 16})
CATEGORIES = ("recalled", "copied")
BATCH = 8
REFERENCE_BATCH = 32


@dataclass(frozen=True)
class Work:
    """Tokenised prompts.

    Attributes:
        prompts: columns id, category, answer, text, token: what the answer begins with.
        batches: all prompts, sorted by length.
        sites: names of every block's `resid_post`, in order of execution.
        vocabulary: number of tokens.
        dtype: of the model, such as `float32`.
    """

    prompts: pd.DataFrame
    batches: list[Batch]
    sites: list[str]
    vocabulary: int
    dtype: str


class Lens(Task):
    """Result, each (prompt, layer), in the order of `Work.prompts` and `Work.sites`:

    margin: the answer's logit less the largest other one; above 0 the answer is the first choice.
    logprob: its log probability, in nats.
    rank: number of tokens before it; 0 is the first choice.
    scale: largest absolute logit, the measure of rounding.
    ties: number of tokens so close to the answer that rounding can put them on its other side; the reference alone.
    """

    name: ClassVar[str] = "lens"
    question: ClassVar[str] = "From which layer on is the answer what the model would say?"
    source: ClassVar[str] = "logit lens: nostalgebraist 2020, lesswrong.com/posts/AcKRB8wDpdaN6v6ru"
    categories: ClassVar[str] = "the same answers, recalled from memory or copied from the prompt"
    data: ClassVar[str] = "lens-v1, 16 answers in two prompts each, written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ("capture.residual", "padding.right")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """Both prompts of the first answers; of an answer of several tokens the first one counts.

        Raises:
            InputError: no tokenizer, a model without canonical sites or without a final norm, or a tokenizer that makes
                nothing of a prompt or of an answer.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        if "final_norm" not in architecture.sites.canonical:
            raise InputError(f"task 'lens' needs a model with a final norm, which this {type(model).__name__} lacks")
        rows, ids = [], []
        for answer in read_answers()[: ANSWERS[size]]:
            for category in CATEGORIES:
                text = getattr(answer, category)
                prompt, token = asked(self.name, tokenizer, text, answer.answer)
                ids.append(prompt)
                rows.append((answer.id, category, answer.answer, text, token))
        prompts = pd.DataFrame(rows, columns=["id", "category", "answer", "text", "token"])
        sites = site_names(architecture, "resid_post")
        vocabulary = architecture.sizes["d_vocab"]
        return Work(prompts, batches(ids, tokenizer, BATCH), sites, vocabulary, dtype_of(model))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One forward a batch; norm and unembedding are the model's own modules, in the model's dtype."""
        out = _empty(work)
        tokens = torch.tensor(work.prompts["token"].to_numpy())
        for done, batch in enumerate(work.batches, start=1):
            run = lens.run(batch.inputs, capture=work.sites)
            answers = tokens[batch.rows].to(run.logits.device)[:, None]
            for layer, site in enumerate(work.sites):
                logits = unembed(lens.model, lens.architecture, run.at(site, [-1])[:, 0]).double()  # batch, d_vocab
                own = logits.gather(1, answers)
                others = logits.scatter(1, answers, -torch.inf)
                figures = {
                    "margin": own[:, 0] - others.amax(1),
                    "logprob": own[:, 0] - logits.logsumexp(1),
                    "rank": (others > own).sum(1),
                    "scale": logits.abs().amax(1),
                }
                for name, found in figures.items():
                    out[name][batch.rows, layer] = found.cpu().numpy()
            if progress:
                progress(done, len(work.batches))
        return out

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle: the logits of a stream are those of a run whose last block leaves that stream.

        Each prompt goes through alone, without padding; then each (prompt, layer) is the only position of a row, whose
        last `resid_post` is replaced by the stream. So the oracle's own norm and unembedding are all that is used.
        """
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        out = _empty(work)
        streams = _oracle_streams(oracle, work)  # prompt, layer, d_model
        cells = [(prompt, layer) for prompt in range(len(work.prompts)) for layer in range(len(work.sites))]
        tolerance = 2 * rounding(work.dtype)
        for start in range(0, len(cells), REFERENCE_BATCH):
            part = cells[start : start + REFERENCE_BATCH]
            values = torch.stack([streams[prompt, layer] for prompt, layer in part])[:, None]
            dummy = torch.zeros(len(part), 1, dtype=torch.int64)
            logits = oracle.run(dummy, edits=[replace(work.sites[-1], values)]).logits[:, 0].cpu().numpy()
            for (prompt, layer), row in zip(part, logits, strict=True):
                answer = int(work.prompts["token"][prompt])
                rest = np.delete(row, answer)
                scale = np.abs(row).max()
                out["margin"][prompt, layer] = row[answer] - rest.max()
                out["logprob"][prompt, layer] = special.log_softmax(row)[answer]
                out["rank"][prompt, layer] = np.count_nonzero(rest > row[answer])
                out["scale"][prompt, layer] = scale
                out["ties"][prompt, layer] = np.count_nonzero(np.abs(rest - row[answer]) <= tolerance * scale)
            if progress:
                progress(start + len(part), len(cells))
        return out

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors are relative to the largest logit of their (prompt, layer); a rank may be off by its ties alone.

        The effect is how far the margin moves from one layer to the next, in the median: what reading a wrong layer
        would be off by.
        """
        scale = reference["scale"]
        moves = np.abs(np.diff(reference["margin"], axis=1)) / scale[:, 1:]
        scales = dict.fromkeys(("margin", "logprob", "scale"), scale)
        score = judged(result, reference, scales, dtype, ranking="margin", effect=float(np.median(moves)))
        ranked = np.abs(result["rank"] - reference["rank"]) <= reference["ties"]
        return dataclasses.replace(score, right=score.right and bool(ranked.all()))

    def known(self, reference: Result, work: Work) -> Known:
        """The answer comes late: Geva et al. 2023, arXiv:2304.14767, find recall in the upper layers."""
        n = len(work.sites)
        surfaced, settled = (float(np.median(layers)) for layers in appears(reference, work))
        early = float((reference["margin"][:, : n // 2] > 0).mean())
        right = float((reference["margin"][:, -1] > 0).mean())
        return Known(
            "at the end 9 of 10 answers or more are the first choice; in the lower half of the layers none is, and the "
            "middle one comes among the first 1 % of tokens for good in the last third of the layers",
            f"{right:.0%} at the end, {early:.0%} in the lower half; the middle one is among the first 1 % from layer "
            f"{surfaced:g} of {n} on, and the first choice from layer {settled:g} on",
            bool(right >= 0.9 and early == 0 and 2 * n / 3 <= surfaced < n),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One batch of middling length with every `resid_post` captured; reading it is not the backend's work."""
        inputs = middling(work.batches)
        return lambda: lens.run(inputs, capture=work.sites)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, middling(work.batches))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (answer, category, layer): margin, logprob, rank, and whether the answer stays among the
        first 1 % of tokens (surfaced) and the first choice (settled) from there on.
        """
        layers = len(work.sites)
        table = work.prompts.loc[work.prompts.index.repeat(layers), ["id", "category", "answer"]]
        table = table.reset_index(drop=True).assign(layer=np.tile(np.arange(layers), len(work.prompts)))
        for name in ("margin", "logprob", "rank"):
            table[name] = result[name].ravel()
        table["rank"] = table["rank"].astype(int)
        for name, found in zip(("surfaced", "settled"), appears(result, work), strict=True):
            table[name] = (np.arange(layers) >= found[:, None]).ravel()
        return table

    def headline(self, result: Result, work: Work) -> str:
        n, said = len(work.sites), []
        surfaced, settled = appears(result, work)
        for category in CATEGORIES:
            own = (work.prompts["category"] == category).to_numpy()
            said.append(
                f"{category}: among the first 1 % {_from(surfaced[own], n)}, first choice {_from(settled[own], n)} "
                f"({np.count_nonzero(settled[own] < n)} of {own.sum()} answers)"
            )
        return f"where the middle answer appears for good: {'; '.join(said)}"


def appears(result: Result, work: Work) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(prompt,) first layer from which the answer stays among the first 1 % of tokens, and the first choice.

    Where it is not so after the last layer: the number of layers.
    """
    few = max(1, work.vocabulary // 100)
    return _for_good(result["rank"] < few), _for_good(result["margin"] > 0)


def _for_good(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(prompt, layer) -> (prompt,) first layer from which it holds to the end."""
    lost = ~holds[:, ::-1]  # from the last layer down
    return np.where(lost.any(axis=1), holds.shape[1] - lost.argmax(axis=1), 0)


def _from(layers: NDArray[np.int64], n: int) -> str:
    middle = np.median(layers)
    return f"from layer {middle:g} of {n}" if middle < n else "nowhere"


def unembed(model: nn.Module, architecture: Architecture, stream: Tensor) -> Tensor:
    """(..., d_model) residual stream -> (..., d_vocab) logits, by the model's own final norm and unembedding."""
    assert architecture.family is not None
    norm = model.get_submodule(architecture.family.globals["final_norm"].module)
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    with torch.no_grad():
        logits: Tensor = head(norm(stream))
        cap = getattr(model.config, "final_logit_softcapping", None)  # gemma2
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _oracle_streams(oracle: Any, work: Work) -> Tensor:
    """(prompt, layer, d_model) what the oracle's blocks leave at each prompt's last position."""
    rows = {row: ids for batch in work.batches for row, ids in zip(batch.rows, batch.unpadded(), strict=True)}
    runs = (oracle.run(rows[row][None]).sites for row in range(len(rows)))
    return torch.stack([torch.stack([sites[site][0, -1] for site in work.sites]) for sites in runs])


def _empty(work: Work) -> dict[str, NDArray[np.float64]]:
    shape = len(work.prompts), len(work.sites)
    return {name: np.full(shape, np.nan) for name in ("margin", "logprob", "rank", "scale", "ties")}
