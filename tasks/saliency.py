"""Saliency: which mention of which name speaks for the answer, and which against it?

In "When Mary and John went to the store, John gave a drink to" the answer is whoever was named once. Attribution says
what each token's embedding contributes to the logit of the right name minus that of the other one: input x gradient,
and integrated gradients from a sentence in which every name is halfway between the two, so that what is attributed is
which name stands where. The categories are the three mentions, in prompts that differ in who acts again.

Why halfway: from an empty prompt (embedding 0, padding, the mean embedding) to this one the gradient of SmolLM2-135M
changes so fast that 32 nodes leave the sum off by more than what it explains; from halfway, 16 come within 1%.
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
from crosslens.adapters.attribution import Target

from . import data
from .base import Known, Progress, Result, Score, Size, Task
from .ioi import _alike, _prompt
from .scoring import judged
from .workload import architecture_for, bare_forward

TEMPLATES: Mapping[Size, int] = MappingProxyType({"smoke": 1, "default": 2, "full": 8})
STEPS = 16
REFERENCE_BATCH = 8
ROLES = ("answer", "subject", "subject again")
_GROWTH = 4  # of rounding, forth and back through all layers
_COMPLETE = 0.02


@dataclass(frozen=True)
class Prompt:
    """A prompt that asks for one of two names.

    Attributes:
        id: of the template, and which of its two names acts again.
        ids: (1, pos) token ids.
        answers: token ids with which the right name and the other one begin.
        roles: mention -> its positions: more than one where names are several tokens.
        embeds: (1, pos, d_model) embeddings.
        baseline: (1, pos, d_model) the same with every name halfway to the other.
        exchanged: (1, pos) token ids with the names exchanged everywhere.
        tokens: the prompt, token by token.
    """

    id: str
    ids: Tensor
    answers: tuple[int, int]
    roles: Mapping[str, list[int]]
    embeds: Tensor
    baseline: Tensor
    exchanged: Tensor
    tokens: list[str]

    def margin(self, logits: Tensor) -> Tensor:
        """(rows, pos, d_vocab) -> (rows,) the right name's logit minus the other's, at the end."""
        right, wrong = self.answers
        return logits[:, -1, right] - logits[:, -1, wrong]


@dataclass(frozen=True)
class Work:
    """The prompts, in order of length."""

    prompts: list[Prompt]


class Saliency(Task):
    """Result, with NaN at positions that a shorter prompt lacks:

    input_x_gradient (prompt, position): the token's embedding times the gradient of the margin.
    integrated (prompt, position): integrated gradients of the margin, from `Prompt.baseline`; 0 where no name stands.
    change (prompt,): the margin at the prompt minus that at the baseline, which `integrated` should add up to.
    size (prompt, method): of the reference alone: what was summed over units to the largest score, the measure of its
        rounding; and logit (prompt,), the largest logit, that of `change`.
    """

    name: ClassVar[str] = "saliency"
    question: ClassVar[str] = "Which mention of which name speaks for the answer, and which against it?"
    source: ClassVar[str] = (
        "integrated gradients: Sundararajan et al. 2017, arXiv:1703.01365; input x gradient: Shrikumar et al. 2016, "
        "arXiv:1605.01713; prompts: Wang et al. 2022, arXiv:2211.00593"
    )
    categories: ClassVar[str] = "the name that is the answer, the other name's first mention, and its second"
    data: ClassVar[str] = "ioi-v1, 8 templates and 24 names written for crosslens after Wang et al., CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ()
    needs_any: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("attribute",),
        ("capture.residual", "gradients", "edit.replace"),
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """Two prompts for each of the first templates: either name acts again.

        Raises:
            InputError: no tokenizer, a model without canonical sites or without the site `embed`, or names that the
                tokenizer does not write with equally many tokens.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        if "embed" not in architecture.sites.canonical:
            raise InputError(f"task {self.name!r} needs the site embed, which this {type(model).__name__} lacks")
        table = model.get_submodule(architecture.address(architecture.sites.canonical["embed"]).module)
        prompts = data.read_prompts()
        names = _alike(tokenizer, prompts.names)
        found = []
        for i, (key, template) in enumerate(list(prompts.templates.items())[: TEMPLATES[size]]):
            first, second = names[2 * i % len(names)], names[(2 * i + 1) % len(names)]
            found += [_make(table, tokenizer, key, template, first, second, again) for again in "AB"]
        return Work(sorted(found, key=lambda prompt: len(prompt.tokens)))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """By the library's own attribution, where it has it; otherwise by gradients at edited embeddings."""
        attribute = _by_library if lens.capabilities["attribute"] else _by_gradients
        out = _empty(work)
        for i, prompt in enumerate(work.prompts):
            product, integrated, change = attribute(lens, prompt)
            here = slice(len(prompt.tokens))
            out["input_x_gradient"][i, here] = product.double().cpu().numpy()
            out["integrated"][i, here] = integrated.double().cpu().numpy()
            out["change"][i] = change
            if progress:
                progress(i + 1, len(work.prompts))
        return out

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle and autograd through it, each node of the quadrature a row of its own."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        out = _empty(work)
        out["size"], out["logit"] = np.empty((len(work.prompts), 2)), np.empty(len(work.prompts))
        nodes, weights = np.polynomial.legendre.leggauss(STEPS)
        for i, prompt in enumerate(work.prompts):
            plain = oracle.run(prompt.ids)
            end = plain.sites["embed"]
            start = (end + oracle.run(prompt.exchanged).sites["embed"]) / 2
            product = end * oracle.gradients(prompt.ids, ["embed"], prompt.margin)["embed"]
            integrated = torch.zeros_like(end)
            for first in range(0, STEPS, REFERENCE_BATCH):
                part = slice(first, first + REFERENCE_BATCH)
                scaled = (torch.tensor(each[part]).to(end) for each in ((1 + nodes) / 2, weights / 2))
                along, weight = (each[:, None, None] for each in scaled)
                edit = replace("embed", start + along * (end - start))
                ids = prompt.ids.repeat(len(along), 1)
                gradients = oracle.gradients(ids, ["embed"], prompt.margin, edits=[edit])["embed"]
                integrated += (weight * gradients).sum(0) * (end - start)
                if progress:
                    progress(i * STEPS + first + len(along), len(work.prompts) * STEPS)
            base = oracle.run(prompt.ids, edits=[replace("embed", start)]).logits
            here = slice(len(prompt.tokens))
            for m, (name, units) in enumerate((("input_x_gradient", product), ("integrated", integrated))):
                out[name][i, here] = units[0].sum(-1).cpu().numpy()
                out["size"][i, m] = float(units[0].abs().sum(-1).max())
            out["change"][i] = float(prompt.margin(plain.logits) - prompt.margin(base))
            out["logit"][i] = float(plain.logits[0, -1].abs().max())
        return out

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors and noise are relative to what was summed to a prompt's largest score; `change`, to its logits.

        What captum, tdhook and inseq do in float32 whatever the model's dtype, weights and sums, is off by 1e-8 or so:
        no float64 run through them is right.
        """
        size = reference["size"]
        scales = {"input_x_gradient": size[:, :1], "integrated": size[:, 1:], "change": reference["logit"]}
        strength = [np.nanmax(np.abs(reference[name]), axis=1) for name in ("input_x_gradient", "integrated")]
        effect = float(np.min(np.stack(strength, axis=1) / size))
        return judged(result, reference, scales, dtype, ranking="integrated", effect=effect, growth=_GROWTH)

    def known(self, reference: Result, work: Work) -> Known:
        """Copying a name raises its logit, and a name that comes twice is inhibited: Wang et al. 2022."""
        means, rest = dict(zip(ROLES, by_role(reference["integrated"], work).mean(0), strict=True)), missing(reference)
        found = ", ".join(f"{role} {value:+.2f}" for role, value in means.items())
        return Known(
            "the answer's mention speaks for it, the other name's first mention against and its second for the answer; "
            f"the scores add up to what they explain within {_COMPLETE:.0%} (completeness)",
            f"{found}; at most {rest.max():.1%} is missing, in {len(rest)} prompts",
            bool(means["answer"] > 0 > means["subject"] and means["subject again"] > 0 and rest.max() < _COMPLETE),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """Input x gradient of one prompt: one forward and one backward."""
        prompt = work.prompts[0]
        if lens.capabilities["attribute"]:
            return lambda: lens.attribute(prompt.ids, Target(*prompt.answers), method="input_x_gradient")
        return lambda: lens.gradients(prompt.ids, ["embed"], prompt.margin)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.prompts[0].ids)

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (prompt, position): the token there, its role ("" for none), and both scores."""
        return pd.DataFrame(
            [
                {
                    "prompt": prompt.id,
                    "position": position,
                    "token": token,
                    "role": next((role for role in ROLES if position in prompt.roles[role]), ""),
                    "input_x_gradient": float(result["input_x_gradient"][i, position]),
                    "integrated": float(result["integrated"][i, position]),
                }
                for i, prompt in enumerate(work.prompts)
                for position, token in enumerate(prompt.tokens)
            ]
        )

    def headline(self, result: Result, work: Work) -> str:
        exact, quick = (by_role(result[name], work) for name in ("integrated", "input_x_gradient"))
        found = ", ".join(f"{role} {value:+.2f}" for role, value in zip(ROLES, exact.mean(0), strict=True))
        same = int((np.sign(exact) == np.sign(quick)).sum())
        return (
            f"for the answer, in logits: {found} (of {result['change'].mean():.2f}, at most "
            f"{missing(result).max():.1%} missing); input x gradient has the sign of {same} of {exact.size} of them"
        )


def by_role(scores: NDArray[np.float64], work: Work) -> NDArray[np.float64]:
    """(prompt, position) -> (prompt, role), in the order of `ROLES`."""
    return np.array([[scores[i, p.roles[role]].sum() for role in ROLES] for i, p in enumerate(work.prompts)])


def missing(result: Result) -> NDArray[np.float64]:
    """(prompt,) how far integrated gradients are from complete: |sum of scores - change| / |change|."""
    change = result["change"]
    return np.asarray(np.abs(np.nansum(result["integrated"], axis=1) - change) / np.abs(change), dtype=np.float64)


def _by_library(lens: Inspector, prompt: Prompt) -> tuple[Tensor, Tensor, float]:
    """(pos,) both scores, and the change, by what the library says that its scores lack."""
    target = Target(*prompt.answers)
    product = lens.attribute(prompt.ids, target, method="input_x_gradient").scores[0]
    found = lens.attribute(prompt.ids, target, method="integrated_gradients", steps=STEPS, baseline=prompt.baseline)
    assert found.delta is not None, "integrated gradients have one"
    return product, found.scores[0], float(found.scores[0].sum() - found.delta[0])


def _by_gradients(lens: Inspector, prompt: Prompt) -> tuple[Tensor, Tensor, float]:
    """The same from one forward and backward: the prompt, the baseline, and every node on the way are its rows."""
    nodes, weights = np.polynomial.legendre.leggauss(STEPS)
    end, start = prompt.embeds, prompt.baseline
    on_the_way = torch.tensor([1.0, 0.0, *(1 + nodes) / 2], dtype=torch.float64).to(end)[:, None, None]
    margins: list[Tensor] = []

    def margin(logits: Tensor) -> Tensor:
        margins.append(prompt.margin(logits))
        return margins[-1]

    edit = replace("embed", torch.lerp(start, end, on_the_way))
    gradients = lens.gradients(prompt.ids.repeat(len(on_the_way), 1), ["embed"], margin, edits=[edit])["embed"]
    mean = (gradients[2:] * torch.tensor(weights / 2).to(end)[:, None, None]).sum(0)
    whole, nothing = margins[-1].detach()[:2].tolist()
    return (end[0] * gradients[0]).sum(-1), ((end - start)[0] * mean).sum(-1), whole - nothing


def _make(
    table: nn.Module, tokenizer: Any, key: str, template: str, first: str, second: str, again: str
) -> Prompt:  # fmt: skip
    """The prompt in which the name in slot `again` acts again, and the other one is the answer."""
    plain = {"A": first, "B": second}
    plain["S"] = plain[again]
    other = {slot: second if name == first else first for slot, name in plain.items()}
    right, wrong = other["S"], plain["S"]

    def tokens(slots: Mapping[str, str]) -> tuple[list[int], int]:
        return _prompt(tokenizer, template.format(**slots), right, wrong)

    ids, answer = tokens(plain)
    _, mistake = _prompt(tokenizer, template.format(**plain), wrong, right)
    changed = {slot: tokens({**plain, slot: other[slot]})[0] for slot in plain}
    exchanged = tokens(other)[0]
    places = {
        slot: [p for p, (a, b) in enumerate(zip(ids, new, strict=False)) if a != b] for slot, new in changed.items()
    }
    if {len(new) for new in (*changed.values(), exchanged)} != {len(ids)} or not all(places.values()):
        raise InputError(
            f"task 'saliency', prompt {key!r}: with {first!r} and {second!r} exchanged the tokenizer makes another "
            "number of tokens, or the same tokens; each name must be as long as the other"
        )
    device = next(table.parameters()).device
    with torch.no_grad():
        embeds, swapped = (table(torch.tensor([row], device=device)).clone() for row in (ids, exchanged))
    roles = {"answer": places["B" if again == "A" else "A"], "subject": places[again], "subject again": places["S"]}
    return Prompt(
        f"{key}-{again}", torch.tensor([ids]), (answer, mistake), roles, embeds, (embeds + swapped) / 2,
        torch.tensor([exchanged]), [tokenizer.decode([token]) for token in ids],
    )  # fmt: skip


def _empty(work: Work) -> dict[str, NDArray[np.float64]]:
    shape = len(work.prompts), max(len(prompt.tokens) for prompt in work.prompts)
    out: dict[str, NDArray[np.float64]] = {name: np.full(shape, np.nan) for name in ("input_x_gradient", "integrated")}
    out["change"] = np.full(len(work.prompts), np.nan)
    return out
