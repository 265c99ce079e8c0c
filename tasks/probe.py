"""Linear probe: from which layer on can the category be read off the residual stream by a straight line?

At each block, a ridge regression on what the last position holds learns the sentiment of some pairs of sentences and
tells that of others, which have other words in another sentence. The pair is the group: both its sentences are held out
together. Probes of labels that were exchanged at random within pairs show what a probe finds where nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import linalg
from torch import nn

from crosslens.adapters import Inspector

from .base import Known, Progress, Result, Score, Size, Task
from .data.prompts import read_sentiment
from .scoring import judged
from .workload import Batch, architecture_for, bare_forward, batches, middling, site_names

PAIRS: Mapping[Size, int] = MappingProxyType({"smoke": 6, "default": 24, "full": 24})
CONTROLS: Mapping[Size, int] = MappingProxyType({"smoke": 5, "default": 50, "full": 500})
FOLDS = 6
BATCH = 8
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """Tokenised sentences, and what the probes are to learn.

    Attributes:
        examples: columns pair, category, text; the positive sentence of a pair comes first.
        batches: all sentences, sorted by length.
        sites: names of every block's `resid_post`, in order of execution.
        labels: (labelling, example), 1 or -1: the categories, then the controls.
        fold: (example,) in which it is held out.
    """

    examples: pd.DataFrame
    batches: list[Batch]
    sites: list[str]
    labels: Array
    fold: NDArray[np.int64]


class Probe(Task):
    """Result:

    decision (layer, labelling, example): what the probe says of an example that it has not seen; labels are 1 and -1.
    scale (layer,): what the decisions' rounding goes by, see `_scale`; of the reference alone.
    """

    name: ClassVar[str] = "probe"
    question: ClassVar[str] = "From which layer on is the category there to be read by a linear probe?"
    source: ClassVar[str] = (
        "Alain and Bengio 2016, arXiv:1610.01644; control labels: Hewitt and Liang 2019, arXiv:1909.03368"
    )
    categories: ClassVar[str] = "positive and negative sentences that differ in one word"
    data: ClassVar[str] = "sentiment-v1, 24 pairs of sentences written for crosslens, CC0-1.0"
    needs: ClassVar[tuple[str, ...]] = ("capture.residual", "padding.right")

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """The first pairs; `full` has more controls.

        Raises:
            InputError: no tokenizer, or a model without canonical sites.
        """
        architecture = architecture_for(self.name, model, tokenizer)
        pairs = list(read_sentiment().pairs.items())[: PAIRS[size]]
        rows = [(name, *each) for name, texts in pairs for each in zip(("positive", "negative"), texts, strict=True)]
        examples = pd.DataFrame(rows, columns=["pair", "category", "text"])
        ids = [list(tokenizer(text)["input_ids"]) for text in examples["text"]]
        exchanged = np.random.default_rng(0).choice([1.0, -1.0], size=(CONTROLS[size], len(pairs)))
        signs = np.concatenate([np.ones((1, len(pairs))), exchanged])
        labels = np.stack([signs, -signs], axis=2).reshape(len(signs), -1)
        fold = np.repeat(np.arange(len(pairs)) % FOLDS, 2)
        return Work(examples, batches(ids, tokenizer, BATCH), site_names(architecture, "resid_post"), labels, fold)

    def run(self, lens: Inspector, work: Work, progress: Progress | None = None) -> Result:
        """One forward a batch, and scikit-learn's ridge regression."""
        streams: Array | None = None
        for done, batch in enumerate(work.batches, start=1):
            run = lens.run(batch.inputs, capture=work.sites)
            last = np.stack([run.at(site, [-1])[:, 0].double().cpu().numpy() for site in work.sites])
            if streams is None:
                streams = np.full((len(work.sites), len(work.examples), last.shape[2]), np.nan)
            streams[:, batch.rows] = last
            if progress:
                progress(done, len(work.batches))
        assert streams is not None
        return {"decision": np.stack([_decisions(x, work) for x in streams])}

    def reference(self, model: nn.Module, work: Work, progress: Progress | None = None) -> Result:
        """By the float64 oracle, sentence by sentence, and the dual of ridge regression written out."""
        from crosslens.adapters.conformance.oracle import Oracle

        oracle = Oracle(model)
        rows = {row: ids for batch in work.batches for row, ids in zip(batch.rows, batch.unpadded(), strict=True)}
        found = []
        for row in range(len(rows)):
            sites = oracle.run(rows[row][None]).sites
            found.append(np.stack([sites[site][0, -1].cpu().numpy() for site in work.sites]))
            if progress:
                progress(row + 1, len(rows))
        streams = np.stack(found, axis=1)  # layer, example, d_model
        decision = np.stack([_dual_decisions(x, work) for x in streams])
        return {"decision": decision, "scale": np.array([_scale(x) for x in streams])}

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """Decisions are compared, which are continuous; areas and shares of them jump where two of them tie.

        The effect is how far a decision moves from one layer to the next, in the median: what reading a wrong layer
        would be off by.
        """
        scale = reference["scale"][:, None, None]
        moves = np.abs(np.diff(reference["decision"][:, :1], axis=0)) / scale[1:]
        return judged(result, reference, {"decision": scale}, dtype, ranking="decision", effect=float(np.median(moves)))

    def known(self, reference: Result, work: Work) -> Known:
        """Sentiment is linear, and gathered at punctuation: Tigges et al. 2023, arXiv:2310.15154."""
        table = self.table(reference, work)
        best = table.iloc[int(table["auroc"].argmax())]
        return Known(
            "a linear probe at some layer tells the sentiment of unseen sentences, from the full stop at their end, "
            "with an AUROC of 0.8 or more, and exchanged labels within 0.05 of chance",
            f"{best['auroc']:.2f} after block {best['layer']:.0f}, exchanged labels {best['control']:.2f}",
            bool(best["auroc"] >= 0.8 and abs(best["control"] - 0.5) <= 0.05),
        )

    def step(self, lens: Inspector, work: Work) -> Callable[[], Any]:
        """One batch of middling length with every `resid_post` captured; the probe is not the backend's work."""
        inputs = middling(work.batches)
        return lambda: lens.run(inputs, capture=work.sites)

    def bare(self, model: nn.Module, work: Work) -> Callable[[], Any]:
        return bare_forward(model, middling(work.batches))

    def table(self, result: Result, work: Work) -> pd.DataFrame:
        """One row a layer.

        Columns: auroc, of held-out decisions, 0.5 is chance; paired, the share of pairs whose positive sentence has the
        higher decision; control, the mean AUROC of exchanged labels; selectivity, auroc less control; p, the share of
        labellings, the true one among them, whose AUROC is no smaller.
        """
        rows = []
        for layer, decision in enumerate(result["decision"]):
            areas = np.array([_auroc(d, y) for d, y in zip(decision, work.labels, strict=True)])
            control = float(areas[1:].mean())
            rows.append(
                {
                    "layer": layer,
                    "auroc": areas[0],
                    "paired": float((decision[0, 0::2] > decision[0, 1::2]).mean()),
                    "control": control,
                    "selectivity": areas[0] - control,
                    "p": float((areas >= areas[0]).mean()),
                }
            )
        return pd.DataFrame(rows)

    def headline(self, result: Result, work: Work) -> str:
        table = self.table(result, work)
        best = table.iloc[int(table["auroc"].argmax())]
        return (
            f"the category is read best after block {best['layer']:.0f} of {len(table)}: AUROC {best['auroc']:.2f} on "
            f"unseen pairs (exchanged labels {best['control']:.2f}, p = {best['p']:.2g} there alone); "
            f"{table['auroc'].iloc[0]:.2f} after block 0"
        )


def _decisions(x: Array, work: Work) -> Array:
    """(example, d_model) -> (labelling, example) held-out decisions.

    Ridge regression on coordinates standardised by the training folds, with a penalty of d_model, which is what the
    squared norm of a standardised example is: it needs no tuning, and no label is seen in choosing it.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    decision = np.full(work.labels.shape, np.nan)
    for fold in np.unique(work.fold):
        held = work.fold == fold
        scaler = StandardScaler().fit(x[~held])
        ridge = Ridge(alpha=x.shape[1], solver="cholesky").fit(scaler.transform(x[~held]), work.labels[:, ~held].T)
        decision[:, held] = ridge.predict(scaler.transform(x[held])).T
    return decision


def _dual_decisions(x: Array, work: Work) -> Array:
    """The same by the dual: y-bar + K(held, seen) (K(seen, seen) + d I)^-1 (y - y-bar), K of standardised examples."""
    decision = np.full(work.labels.shape, np.nan)
    for fold in range(work.fold.max() + 1):
        held = work.fold == fold
        seen = x[~held]
        spread = seen.std(axis=0)
        z = (x - seen.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        y = work.labels[:, ~held].T
        kernel = z[~held] @ z[~held].T + x.shape[1] * np.eye(len(seen))
        weights = linalg.solve(kernel, y - y.mean(axis=0), assume_a="pos")
        decision[:, held] = (z[held] @ z[~held].T @ weights + y.mean(axis=0)).T
    return decision


def _scale(x: Array) -> float:
    """By how much a decision moves, relative to how far (example, d_model) is off.

    Standardising divides what a coordinate is off by, which goes with the size of the stream, by how far that
    coordinate varies between examples.
    """
    spread = x.std(axis=0)
    return float(np.sqrt(np.mean(x**2)) * np.sqrt(np.mean(spread[spread > 0] ** -2.0)))


def _auroc(decision: Array, labels: Array) -> float:
    """Share of pairs of a 1 and a -1 in which the 1 has the higher decision; a tie counts half."""
    one, two = decision[labels > 0][:, None], decision[labels < 0]
    return float(((one > two) + 0.5 * (one == two)).mean())
