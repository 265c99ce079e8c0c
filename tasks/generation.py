"""Generation: key figures of the forward that chooses each new token; do they depend on what kind of text is written?

Every topic is opened as a story, as a definition and as a dialogue, and the model goes on greedily. The unit of
replication is the opening, and contrasts between registers are paired by topic.
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
from scipy import stats
from torch import Tensor, nn

from crosslens.adapters import Inspector

from .base import Known, Progress, Result, Score, Size, Task
from .continuations import followed, margins, verified
from .data.prompts import read_registers
from .effects import Contrast, contrasts, false_discovery, rounding
from .engine import KPIS, figures
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, dtype_of, site_names

TOPICS: Mapping[Size, int] = MappingProxyType({"smoke": 3, "default": 4, "full": 8})
NEW: Mapping[Size, int] = MappingProxyType({"smoke": 4, "default": 12, "full": 24})
LOCAL_SITES = ("attn.out", "mlp.out", "resid_post")
FIGURES = ("mean", "sd", "abs_max", "kurtosis")
BATCH = 8
# What attention and MLP add is a sum that cancels: on SmolLM2-135M in float32 the worst of 78 000 figures, a largest
# element of one mlp.out, is off by 93 eps.
GROWTH = 4.0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Tokenised openings.

    Attributes:
        openings: columns attribute (always "register"), category, pair (the topic), text.
        batches: of openings that are equally long, so that none is padded.
        sites: names of the sites whose key figures are taken, in order of execution.
        new: number of tokens to generate.
        dtype: of the model, such as `float32`.
    """

    openings: pd.DataFrame
    batches: list[Batch]
    sites: list[str]
    new: int
    dtype: str


class Generation(Task):
    """Result, over (opening, new token) in the order of `Work.openings`; what belongs to a token is of the forward, and
    the position, that it was chosen at:

    kpis (opening, new token, site, figure), in the order of `Work.sites` and `FIGURES`.
    tokens: greedy, with a cache.
    margin: by how much each token's logit exceeds the next.
    entropy: of the distribution that it was chosen from, in nats.
    scale: largest absolute logit there, the measure of rounding.
    first (opening, site): largest absolute element at the opening's first position.
    """

    name: ClassVar[str] = "generation"
    question: ClassVar[str] = "Does the network work differently, token by token, on different kinds of text?"
    source: ClassVar[str] = (
        "categorised recording of key figures, as in comgra; massive activations: Sun et al. 2024, arXiv:2402.17762"
    )
    categories: ClassVar[str] = "registers of the text to write: story, definition, dialogue"
    data: ClassVar[str] = "registers-v1, 3 registers of 8 topics written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = (
        "capture.residual",
        "capture.attention",
        "capture.mlp",
        "generate",
        "generate.capture",
    )

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first topics in all registers.

        Raises:
            InputError: no tokenizer, or a model without canonical sites.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        data = read_registers()
        rows = [
            ("register", register, topic, text.format(topic=topic))
            for topic in data.topics[: TOPICS[size]]
            for register, text in data.registers.items()
        ]
        openings = pd.DataFrame(rows, columns=["attribute", "category", "pair", "text"])
        parts = _equally_long([list(tokenizer(text)["input_ids"]) for text in openings["text"]], tokenizer)
        return Work(openings, parts, site_names(architecture, *LOCAL_SITES), NEW[size], dtype_of(model))

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One generation a batch, with every site captured at every position."""
        out = _empty(work)
        wanted = [KPIS.index(name) for name in FIGURES]
        for done, batch in enumerate(work.batches, start=1):
            found = lens.generate(batch.inputs["input_ids"], max_new_tokens=work.new, capture=work.sites)
            _chosen(out, batch.rows, found.new_tokens, found.logits)
            for i, site in enumerate(work.sites):
                stream = found[site]
                out["kpis"][batch.rows, :, i] = figures(stream[:, -work.new :], keep=(1,))[..., wanted].numpy()
                out["first"][batch.rows, i] = stream[:, 0].abs().amax(-1).double().cpu().numpy()
            if progress:
                progress(done, len(work.batches))
        return out

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, which reads a whole text at once, and NumPy.

        The plain model drafts the text with its own cache; the oracle keeps of it what it would have chosen itself, at
        each position, so that the text is the oracle's.
        """
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        out = _empty(work)
        for done, batch in enumerate(work.batches, start=1):
            prompt = batch.inputs["input_ids"]
            runs: list[Any] = []

            def logits_of(tokens: Tensor, runs: list[Any] = runs) -> Tensor:
                runs[:] = [oracle.run(tokens)]
                logits: Tensor = runs[0].logits
                return logits

            tokens = verified(logits_of, prompt, _draft(model, prompt, work.new))
            sites = runs[0].sites
            _chosen(out, batch.rows, tokens, sites["logits"][:, -work.new :])
            for i, site in enumerate(work.sites):
                stream = sites[site].cpu().numpy()
                out["kpis"][batch.rows, :, i] = _by_definition(stream[:, -work.new :])
                out["first"][batch.rows, i] = np.abs(stream[:, 0]).max(axis=-1)
            if progress:
                progress(done, len(work.batches))
        return out

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Errors are relative to the scale of each (site, figure); texts may part where two tokens tie.

        The effect is the largest difference between a register and the others, in means over the text.
        """
        scale = _scale(reference["kpis"])
        scales = {
            "kpis": scale,
            "margin": reference["scale"],
            "entropy": reference["scale"],
            "scale": reference["scale"],
            "first": reference["first"],
        }
        tolerance = 2 * rounding(dtype) * reference["scale"]
        before, fair = followed(result["tokens"], reference["tokens"], reference["margin"], tolerance)
        kept = {name: np.where(before, result[name], reference[name]) for name in ("margin", "entropy", "scale")}
        kept["kpis"] = np.where(before[:, :, None, None], result["kpis"], reference["kpis"])
        found = contrasts(_over_text(reference["kpis"]), work.openings)
        effect = max(float(np.abs(each.difference / scale).max()) for each in found)
        score = judged({**result, **kept}, reference, scales, dtype, ranking="kpis", effect=effect, growth=GROWTH)
        return dataclasses.replace(score, right=score.right and fair)

    def known(self, reference: Result, work: Work) -> Known:
        """Massive activations are at the first token, and not at those that follow: Sun et al. 2024."""
        streams = [i for i, site in enumerate(work.sites) if site.endswith("resid_post")]
        middle = streams[len(streams) // 2]
        first = float(np.median(reference["first"][:, middle]))
        new = float(reference["kpis"][:, 1:, middle, FIGURES.index("abs_max")].max())
        return Known(
            "in the middle of the network the first position has an activation 10 times as large as any new token's",
            f"{first:.0f} in the median opening, {new:.0f} at most at a new token, at {work.sites[middle]}",
            first > 10 * new,
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One batch of openings with every site captured: what a generation does first."""
        inputs = work.batches[0].inputs["input_ids"]
        return lambda: lens.run(inputs, capture=work.sites)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, work.batches[0].inputs["input_ids"])

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row for each (register, token, site, figure), where registers differ most first.

        Token 0 is chosen at the opening's last position, which differs between registers whatever is written; token -1
        stands for the mean over the others, which are chosen where the model reads its own text.

        Columns: n topics; mean and sd of the figure over them; difference, to the other registers of the same topics;
        g, the paired effect size of that difference (`effects.Contrast.g`); p of its paired t test; q, the false
        discovery rate over the whole table. g, p and q are NaN where rounding could make the difference.
        """
        kpis = result["kpis"]
        values = np.concatenate([_over_text(kpis)[:, None], kpis], axis=1)
        token, site, kpi = (
            axis.ravel() for axis in np.meshgrid(np.arange(-1, work.new), work.sites, FIGURES, indexing="ij")
        )
        parts = []
        for contrast in contrasts(values, work.openings):
            clear = _clear(contrast, kpis, work)
            columns = {
                "mean": contrast.mean,
                "sd": contrast.sd,
                "difference": contrast.difference,
                "g": np.where(clear, contrast.g, np.nan),
                "p": np.where(clear, contrast.p, np.nan),
            }
            part = pd.DataFrame({"register": contrast.category, "token": token, "site": site, "kpi": kpi})
            parts.append(part.assign(n=contrast.n, **{name: column.ravel() for name, column in columns.items()}))
        table = pd.concat(parts, ignore_index=True)
        table["q"] = false_discovery(table["p"])
        return table.sort_values("g", key=lambda g: -g.abs(), kind="stable", ignore_index=True)

    def headline(self, result: Result, work: Work) -> str:
        table = self.table(result, work)
        leading = table[table["token"] < 0].dropna(subset="g").drop_duplicates("register")
        registers = work.openings["category"].unique()
        entropy = [result["entropy"][work.openings["category"] == register].mean() for register in registers]
        unsure = ", ".join(f"{name} {h:.2f}" for name, h in zip(registers, entropy, strict=True))
        if leading.empty:
            return f"no key figure differs between registers by more than rounding; nats a token: {unsure}"
        found = [f"{row.register} at {row.site} {row.kpi} (g = {row.g:+.1f})" for row in leading.itertuples()]
        return f"registers differ most, where the model reads its own text: {'; '.join(found)}; nats a token: {unsure}"


def _equally_long(ids: list[list[int]], tokenizer: Any) -> list[Batch]:
    """Batches of texts of one length each: their rows are numbers among all texts."""
    found = []
    for length in sorted({len(row) for row in ids}):
        here = [i for i, row in enumerate(ids) if len(row) == length]
        parts = batches([ids[i] for i in here], tokenizer, BATCH)
        found += [dataclasses.replace(part, rows=[here[i] for i in part.rows]) for part in parts]
    return found


def _empty(work: Work) -> dict[str, Array]:
    shape = len(work.openings), work.new
    out = {name: np.full(shape, np.nan) for name in ("tokens", "margin", "entropy", "scale")}
    out["kpis"] = np.full((*shape, len(work.sites), len(FIGURES)), np.nan)
    out["first"] = np.full((len(work.openings), len(work.sites)), np.nan)
    return out


def _chosen(out: dict[str, Array], rows: list[int], tokens: Tensor, logits: Tensor) -> None:
    """Write down tokens (batch, new) and what is known of the logits (batch, new, d_vocab) they were chosen from."""
    logprob = logits.double().log_softmax(-1)
    found = {
        "tokens": tokens,
        "margin": margins(logits),
        "entropy": torch.special.entr(logprob.exp()).sum(-1),
        "scale": logits.abs().amax(-1),
    }
    for name, each in found.items():
        out[name][rows] = each.double().cpu().numpy()


def _draft(model: nn.Module, prompt: Tensor, new: int) -> Tensor:
    """(batch, new) greedy tokens of the plain model, in its own dtype and with its own cache."""
    read = prompt.to(next(model.parameters()).device)
    cache, tokens = None, []
    with torch.no_grad():
        for _ in range(new):
            output = model(read, past_key_values=cache, use_cache=True)
            cache, read = output.past_key_values, output.logits[:, -1:].argmax(-1)
            tokens.append(read)
    return torch.cat(tokens, dim=1).to(prompt.device)


def _over_text(kpis: Array) -> Array:
    """(opening, new token, ...) -> (opening, ...): the mean where the model reads what it has written."""
    return np.asarray(kpis[:, 1:].mean(axis=1))


def _by_definition(x: Array) -> Array:
    """(..., d_model) -> (..., figure)."""
    found = {"mean": x.mean(-1), "sd": x.std(-1), "abs_max": np.abs(x).max(-1), "kurtosis": stats.kurtosis(x, axis=-1)}
    return np.stack([found[name] for name in FIGURES], axis=-1)


def _scale(kpis: Array) -> Array:
    """(site, figure): what rounding goes by. A mean cancels, and goes with sd; a kurtosis is a share, less 3."""
    largest: Array = np.abs(kpis).max(axis=(0, 1))
    largest[:, FIGURES.index("mean")] = largest[:, FIGURES.index("sd")]
    largest[:, FIGURES.index("kurtosis")] += 3
    return largest


def _clear(contrast: Contrast, kpis: Array, work: Work) -> NDArray[np.bool_]:
    """(token, site, figure): whether the differences vary by more than rounding."""
    return np.asarray(contrast.spread > GROWTH * rounding(work.dtype) * _scale(kpis))
