"""Facts: which states recall what the model knows of a subject?

Causal tracing: noise on the subject's embeddings makes the model forget that the Eiffel Tower is in Paris. Then one
state of the clean run is put back, at one layer and position; how much of the answer returns is its indirect effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crosslens.adapters import Edit, Inspector, add, replace

from .base import Known, Progress, Result, Score, Size, Task
from .data.causal import Fact, read_facts
from .prompting import before_answer, span
from .scoring import judged
from .sweeping import sweep
from .workload import architecture_for, bare_forward, site_names

FACTS: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 12})
SIGMAS = 3.0
"""Of the noise, in standard deviations of the subjects' embeddings."""
LAYERS = 8
"""Layers that are traced, at most, evenly spread."""
WINDOW = 0.2
"""Share of the layers whose MLPs are restored together: one alone does little (10 of 48 in Meng et al.)."""
KINDS = ("resid", "mlp")
REFERENCE_BATCH = 32


@dataclass(frozen=True)
class Prompt:
    """A statement whose last word is left to be said.

    Attributes:
        id: of the fact.
        ids: (1, pos) token ids.
        answer: token id with which the answer begins.
        subject: positions of the subject.
        noise: (1, subject, d_model) what is added to its embeddings, in the model's dtype.
        tokens: the prompt, token by token.
    """

    id: str
    ids: Tensor
    answer: int
    subject: range
    noise: Tensor
    tokens: list[str]

    @property
    def positions(self) -> range:
        """Those whose states the noise reaches: from the subject on."""
        return range(self.subject.start, len(self.tokens))

    def logprob(self, logits: Tensor) -> Tensor:
        """(batch, pos, d_vocab) -> (batch,) log probability of the answer at the end, in nats and float64."""
        return torch.log_softmax(logits[:, -1].double(), dim=-1)[:, self.answer]


@dataclass(frozen=True)
class Work:
    """The prompts, and where they are traced.

    Attributes:
        prompts: of facts.
        layers: numbers of the traced layers.
        pre, resid, mlp: names of every block's `resid_pre`, `resid_post` and `mlp.out`.
        window: how many layers' MLPs are restored together.
    """

    prompts: list[Prompt]
    layers: list[int]
    pre: list[str]
    resid: list[str]
    mlp: list[str]
    window: int

    def restored(self, kind: str, layer: int) -> list[str]:
        """Sites that are put back together: one residual stream, or the MLPs of the window around a layer."""
        if kind == "resid":
            return [self.resid[layer]]
        first = max(0, layer - self.window // 2)
        return self.mlp[first : layer + (self.window + 1) // 2]

    def starts(self, kind: str, layer: int) -> int:
        """The block in which the first of them lies."""
        return layer if kind == "resid" else max(0, layer - self.window // 2)


class Facts(Task):
    """Result, in nats, log probabilities of the answer; NaN at positions that a shorter prompt lacks:

    clean, noised (fact,): without and with noise on the subject.
    resid, mlp (fact, layer, position): with noise, and the states of one position restored, in the order of
        `Work.layers`: the residual stream that leaves the layer, or the outputs of the MLPs around it. Before the
        subject that restores nothing.
    margin (fact,): logit of the answer less the largest other one, in the clean run; above 0 the model says it.
    scale (fact,): largest logit at the end of the clean run, the measure of rounding.
    """

    name: ClassVar[str] = "facts"
    question: ClassVar[str] = "At which layers and positions does the model recall a fact about its subject?"
    source: ClassVar[str] = "causal tracing: Meng et al. 2022, arXiv:2202.05262"
    categories: ClassVar[str] = (
        "statements, the same with noise on the subject, and with one state of the first restored"
    )
    data: ClassVar[str] = "facts-v1, 12 facts that SmolLM2-135M knows, written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual",
        "capture.mlp",
        "edit.add",
        "edit.replace",
        "edit.positions",
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first facts, each with one draw of Gaussian noise; what is drawn depends on the fact alone.

        Raises:
            InputError: no tokenizer, a model without canonical sites, or a tokenizer that makes nothing of a subject.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        module: Any = model
        weights = module.get_input_embeddings().weight.detach()
        found = [_tokenised(tokenizer, fact) for fact in read_facts()[: FACTS[size]]]
        about = torch.cat([ids[0, list(subject)] for ids, _, subject in found])
        sigma = SIGMAS * float(weights[about.to(weights.device)].double().std())
        prompts = []
        for number, (fact, (ids, answer, subject)) in enumerate(zip(read_facts(), found, strict=False)):
            drawn = np.random.default_rng(number).normal(scale=sigma, size=(1, len(subject), weights.shape[1]))
            tokens = [tokenizer.decode([token]) for token in ids[0]]
            prompts.append(Prompt(fact.id, ids, answer, subject, torch.from_numpy(drawn).to(weights.dtype), tokens))
        n = architecture.sizes["n_layers"]
        layers = sorted({round(layer) for layer in np.linspace(0, n - 1, min(n, LAYERS)).tolist()})
        pre, resid, mlp = (site_names(architecture, local) for local in ("resid_pre", "resid_post", "mlp.out"))
        return Work(prompts, layers, pre, resid, mlp, max(1, round(WINDOW * n)))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """By `sweep`, each trace from the noised residual stream that enters the first block which it restores."""
        out = _Figures(work)
        total, done = sum(len(out.cells(prompt)) for prompt in work.prompts), 0
        for i, prompt in enumerate(work.prompts):
            clean = lens.run(prompt.ids, capture=[*work.resid, *work.mlp])
            noise = add("embed", prompt.noise.to(clean.logits.device), positions=list(prompt.subject))
            noised = lens.run(prompt.ids, capture=work.pre, edits=[noise])
            out.prompts(i, clean.logits, noised.logits)
            cells = out.cells(prompt)
            edits = []
            for kind, layer, p in cells:
                entering = work.pre[work.starts(kind, layer)]
                edits.append([replace(entering, noised[entering]), *_restoring(work, clean, kind, layer, p)])

            def report(cell: int, _: int, before: int = done) -> None:
                if progress:
                    progress(before + cell, total)

            found = sweep(lens, prompt.ids, edits, prompt.logprob, logits_at=[-1], progress=report)
            out.traced(i, cells, found[:, 0])
            done += len(cells)
        return out.result

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle: whole forwards with noise on the embeddings, traces as rows of a batch."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle, out = Oracle(model), _Figures(work)
        total, done = sum(len(out.cells(prompt)) for prompt in work.prompts), 0
        for i, prompt in enumerate(work.prompts):
            clean = oracle.run(prompt.ids)
            where = list(prompt.subject)
            noised = oracle.run(prompt.ids, edits=[add("embed", prompt.noise.double(), positions=where)])
            out.prompts(i, clean.logits, noised.logits)
            cells = out.cells(prompt)
            for start in range(0, len(cells), REFERENCE_BATCH):
                part = cells[start : start + REFERENCE_BATCH]
                noise = prompt.noise.double().repeat(len(part), 1, 1)
                edits = [add("embed", noise, positions=where)]
                for row, cell in enumerate(part):
                    edits += _restoring(work, clean.sites, *cell, rows=[row])
                logits = oracle.run(prompt.ids.repeat(len(part), 1), edits=edits).logits
                out.traced(i, part, prompt.logprob(logits))
                done += len(part)
                if progress:
                    progress(done, total)
        return out.result

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are those of logits, relative to the largest; the effect is that of the noise."""
        scale = reference["scale"]
        forgotten = np.abs(reference["clean"] - reference["noised"])
        scales = {name: scale for name in ("clean", "noised", "margin")}
        scales |= {name: scale[:, None, None] for name in KINDS} | {"restored": 2 * scale[:, None, None]}
        ours, right = (
            r | {"restored": r["resid"] - r["noised"][:, None, None]} for r in map(dict, (result, reference))
        )
        return judged(ours, right, scales, dtype, ranking="restored", effect=float((forgotten / scale).min()))

    def known(self, reference: Result, work: Work) -> Known:
        """Two sites, as in Meng et al.: the subject's last token early, and the last token late."""
        early, late = (_shares(reference, work, "resid", at) for at in ("subject", "end"))
        mlp, at_end = (_shares(reference, work, "mlp", at) for at in ("subject", "end"))
        half = len(work.layers) // 2
        answered = int((reference["margin"] > 0).sum())
        before, after = (float(np.exp(reference[name]).mean()) for name in ("clean", "noised"))
        return Known(
            "the model answers all facts, and with noise on the subject not half as surely; early, the subject's last "
            "token restores twice what the end does or more; late, the reverse; early MLPs, too, act at the subject",
            f"{answered} of {len(work.prompts)} answered, p = {before:.2f} and {after:.2f}; subject and end give back "
            f"{early[0]:.2f} and {late[0]:.2f} in layer {work.layers[0]}, {early[-1]:.2f} and {late[-1]:.2f} in "
            f"layer {work.layers[-1]}; early MLPs there at most {mlp[:half].max():.2f} and {at_end[:half].max():.2f}",
            bool(
                answered == len(work.prompts)
                and after < before / 2
                and early[0] > 2 * abs(late[0])
                and late[-1] > 2 * abs(early[-1])
                and mlp[:half].max() > 2 * at_end[:half].max()
            ),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One trace: noise on the subject, and the residual stream of a middle layer restored at its last token."""
        prompt, site = work.prompts[0], work.resid[len(work.resid) // 2]
        last = prompt.subject[-1]
        clean = lens.run(prompt.ids, capture=site)[site]
        noise = add("embed", prompt.noise.to(clean.device), positions=list(prompt.subject))
        return lambda: lens.run(prompt.ids, edits=[noise, replace(site, clean[:, last : last + 1], positions=[last])])

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.prompts[0].ids)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (fact, restored, layer, position): the token there, whether it is of the subject, and

        logprob: of the answer, in nats. effect: what restoring adds to its probability, 0 to 1.
        """
        probability = {name: np.exp(result[name]) for name in ("noised", *KINDS)}
        return pd.DataFrame(
            [
                {"fact": prompt.id, "restored": kind, "layer": layer, "position": p, "token": prompt.tokens[p]}
                | {"subject": p in prompt.subject, "logprob": float(result[kind][i, row, p])}
                | {"effect": float(probability[kind][i, row, p] - probability["noised"][i])}
                for i, prompt in enumerate(work.prompts)
                for kind in KINDS
                for row, layer in enumerate(work.layers)
                for p in range(len(prompt.tokens))
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        before, after = (float(np.exp(result[name]).mean()) for name in ("clean", "noised"))
        at_subject, at_end = (_shares(result, work, "resid", at) for at in ("subject", "end"))
        mlp = _shares(result, work, "mlp", "subject")
        moved = np.flatnonzero(at_end > at_subject)
        where = f"until layer {work.layers[moved[0]]}, then at the end" if len(moved) else "in all layers"
        return (
            f"noise on the subject takes the answer from {before:.2f} to {after:.2f}; it is restored at the subject's "
            f"last token {where}; of MLPs there, by those around layer {work.layers[int(mlp.argmax())]} "
            f"({mlp.max():.2f} of it)"
        )


def _tokenised(tokenizer: Any, fact: Fact) -> tuple[Tensor, int, range]:
    """(1, pos) ids, the answer's first token, and the subject's positions."""
    ids, answer = before_answer("facts", tokenizer, fact.prompt, fact.answer)
    before, after = fact.text.split("{subject}")
    return torch.tensor([ids]), answer, span("facts", tokenizer, before, fact.subject, after)


def _restoring(
    work: Work, clean: Mapping[str, Tensor], kind: str, layer: int, position: int, rows: Iterable[int] | None = None
) -> list[Edit]:
    """Edits that put the clean states of one cell back."""
    where: dict[str, Any] = {"positions": [position]} | ({} if rows is None else {"rows": list(rows)})
    return [replace(s, clean[s][:, position : position + 1], **where) for s in work.restored(kind, layer)]


def _shares(result: Result, work: Work, kind: str, at: str) -> NDArray[np.float64]:
    """(layer,) share of the lost probability that returns, at the subject's last token or the end; mean over facts."""
    clean, noised, traced = (np.exp(result[name]) for name in ("clean", "noised", kind))
    shares = [
        (traced[i, :, prompt.subject[-1] if at == "subject" else len(prompt.tokens) - 1] - noised[i])
        / (clean[i] - noised[i])
        for i, prompt in enumerate(work.prompts)
    ]
    return np.asarray(np.mean(shares, axis=0))


class _Figures:
    """Gathers the result, fact by fact."""

    def __init__(self, work: Work) -> None:
        self._work = work
        n = len(work.prompts)
        shape = n, len(work.layers), max(len(prompt.tokens) for prompt in work.prompts)
        self.result = {name: np.full(n, np.nan) for name in ("clean", "noised", "margin", "scale")}
        self.result |= {kind: np.full(shape, np.nan) for kind in KINDS}

    def cells(self, prompt: Prompt) -> list[tuple[str, int, int]]:
        """Every (kind, layer, position) of a prompt that restores something."""
        return [(kind, layer, p) for kind in KINDS for layer in self._work.layers for p in prompt.positions]

    def prompts(self, i: int, clean: Tensor, noised: Tensor) -> None:
        """Logits (1, pos, d_vocab) of fact i without and with noise."""
        prompt = self._work.prompts[i]
        self.result["clean"][i] = float(prompt.logprob(clean)[0])
        self.result["noised"][i] = float(prompt.logprob(noised)[0])
        last = clean[0, -1].double()
        own = float(last[prompt.answer])
        others = torch.cat([last[: prompt.answer], last[prompt.answer + 1 :]])
        self.result["margin"][i] = own - float(others.max())
        self.result["scale"][i] = float(last.abs().max())
        for kind in KINDS:
            self.result[kind][i, :, : len(prompt.tokens)] = self.result["noised"][i]

    def traced(self, i: int, cells: list[tuple[str, int, int]], values: Tensor) -> None:
        """(cell,) log probabilities of fact i."""
        for (kind, layer, p), value in zip(cells, values.tolist(), strict=True):
            self.result[kind][i, self._work.layers.index(layer), p] = value
