"""What differs inside a network between categories of examples: one pass over a corpus, key figures of every tensor.

    result = compare(lens, "stories.csv", sites=["blocks.*.resid_post"], out="runs/stories")
    result.ranking().head(10)

Batches are padded and sorted by length within a window, each tensor is read where it passes, and what is kept does not
grow with the corpus. With `out` each window is written when it is done; `resume=True` goes on behind the last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosslens.adapters import InputError, Inspector, Site

from .base import Progress
from .comparison import Comparison, Facts
from .comparison_store import Folder
from .engine import KPIS, derive, fields
from .examples import Example, read_examples
from .kernels import FIELDS, Array
from .kpis import causal_mask

DEFAULT_KPIS = tuple(name for name in KPIS if name not in ("count", "entropy"))
"""Of these, and of `entropy` at attention patterns; `count` is the length of the text."""
WINDOW = 32
"""Batches whose examples are sorted by length together, and written together."""


def compare(
    lens: Inspector,
    examples: Any,
    *,
    sites: str | Site | Sequence[str | Site],
    kpis: Sequence[str] | None = None,
    text: str = "text",
    categories: Sequence[str] = ("category",),
    pair: str | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    keep: int = 512,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    model: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Key figures of every site, example by example, by category.

    Args:
        lens: an open inspector on a language model, with a tokenizer.
        examples: a csv, jsonl or parquet file, a DataFrame, or an iterable of mappings; see `read_examples`, also for
            `text`, `categories` and `pair`.
        sites: sites or globs. Attention patterns make the model run with eager attention.
        kpis: of `engine.KPIS`; None for `DEFAULT_KPIS`.
        batch_size: examples of one forward.
        max_tokens: longest example that is accepted; None for what the model takes.
        keep: examples of each category that are kept for permutations and AUROC, chosen by a hash of the example.
        out: new or empty folder for the result; None keeps it in memory.
        resume: go on with what `out` holds.
        seed: of the choice of kept examples.
        model: what the result calls the model.
        progress: called with (examples done, examples in all, or 0 where that is not known).

    Raises:
        InputError: before the first forward where it can be known: no such KPI, an example that cannot be read or is
            too long, a folder that cannot be used. What was finished is kept.
        SiteError, UnsupportedError: as `Inspector.run`.
    """
    names = _kpis(kpis)
    if batch_size < 1 or keep < 2:
        raise InputError(f"batch_size is {batch_size} and keep is {keep}; they must be at least 1 and 2")
    if lens.architecture.family is None or lens.tokenizer is None:
        raise InputError("compare() takes texts: it needs a language model of a known family and its tokenizer")
    chosen = [site.name for site in lens.architecture.sites.resolve(sites)]
    limit = min(max_tokens or 10**9, _limit(lens))
    facts = Facts(
        sites=chosen, kpis=names, columns=list(categories), backend=lens.name, library=_version(lens), model=model,
        dtype=str(lens._dtype).removeprefix("torch."), seed=seed, keep=keep,
    )  # fmt: skip
    source = read_examples(examples, text=text, categories=categories, pair=pair)
    first = next(source, None)  # a file that cannot be read is told before anything else
    if first is None:
        raise InputError("there are no examples")
    source = _chain(first, source)
    folder = None if out is None else Folder(Path(out), facts, resume)
    result = Comparison(facts) if folder is None else folder.result
    total = len(examples) if hasattr(examples, "__len__") and not isinstance(examples, str | Path) else 0
    reader = _Reader(lens, chosen, names, limit)
    for number, window in enumerate(_windows(source, WINDOW * batch_size)):
        mark = _fingerprint(window)
        if folder is not None and number < len(folder.done):
            folder.check(number, mark)
        else:
            values, elements, lengths = reader.window(window, batch_size)
            result.add(window, values, elements, lengths)
            if folder is not None:
                folder.write(number, mark, window, values, elements, lengths)
        if progress:
            progress(window[-1].number + 1, total)
    result.complete = True
    if folder is not None:
        folder.finish()
    return result


def _windows(source: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while window := list(islice(source, size)):
        yield window


def _chain(first: Example, rest: Iterator[Example]) -> Iterator[Example]:
    yield first
    yield from rest


class _Reader:
    """Runs windows of examples and takes the figures where the tensors pass."""

    def __init__(self, lens: Inspector, sites: list[str], kpis: list[str], limit: int) -> None:
        self.lens, self.sites, self.limit = lens, sites, limit
        self.columns = [KPIS.index(name) for name in kpis]

    def window(self, window: list[Example], batch_size: int) -> tuple[Array, Array, list[int]]:
        """(example, site * KPI) figures, (example, site, fields) sums over elements, and lengths in tokens."""
        rows = [list(self.lens.tokenizer(example.text)["input_ids"]) for example in window]
        for example, row in zip(window, rows, strict=True):
            if not 0 < len(row) <= self.limit:
                raise InputError(
                    f"example {example.number + 1} has {len(row):,} tokens; there must be 1 to {self.limit:,} "
                    "(max_tokens, or what the model takes): shorten it, or leave it out"
                )
        elements = np.zeros((len(window), len(self.sites), len(FIELDS)))
        order = np.argsort([len(row) for row in rows], kind="stable").tolist()
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            self._batch([rows[i] for i in batch], elements, batch)
        figures = np.stack(
            [
                derive(elements[:, i], site.endswith("attn.pattern"))[:, self.columns]
                for i, site in enumerate(self.sites)
            ],
            axis=1,
        )
        return figures.reshape(len(window), -1), elements, [len(row) for row in rows]

    def _batch(self, rows: list[list[int]], elements: Array, at: list[int]) -> None:
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        place = {site: i for i, site in enumerate(self.sites)}
        family = self.lens.architecture.family
        assert family is not None

        def look(site: str, tensor: Tensor) -> None:
            pattern = site.endswith("attn.pattern")
            mask = _mask(tensor, real.to(tensor.device), pattern, family.causal)
            elements[at, place[site]] = fields(tensor, mask, pattern, ())

        self.lens.watch({"input_ids": ids, "attention_mask": real.long()}, self.sites, look)


def _mask(tensor: Tensor, real: Tensor, pattern: bool, causal: bool) -> Tensor | None:
    """Real elements of a site's tensor, with 1 in place of axes along which they are the same."""
    if pattern:
        return causal_mask(real) if causal else (real[:, :, None] & real[:, None])[:, None]
    if tensor.ndim < 2 or tensor.shape[:2] != real.shape:  # a module's own tensor without the tokens' axis
        return None
    return real.view(*real.shape, *[1] * (tensor.ndim - 2))


def _kpis(kpis: Sequence[str] | None) -> list[str]:
    if kpis is None:
        return list(DEFAULT_KPIS)
    if not kpis or (unknown := [name for name in kpis if name not in KPIS]):
        raise InputError(
            f"kpis={list(kpis)}: there is no {unknown[0] if kpis else 'KPI'!r}; there are {', '.join(KPIS)}"
        )
    return list(dict.fromkeys(kpis))


def _limit(lens: Inspector) -> int:
    config: Any = lens.model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 10**9)


def _version(lens: Inspector) -> str:
    from importlib.metadata import version

    library = lens.library or "torch"
    return f"{library} {version(library)}"


def _fingerprint(window: list[Example]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for example in window:
        digest.update(repr((example.text, example.categories, example.pair)).encode())
    return digest.hexdigest()
