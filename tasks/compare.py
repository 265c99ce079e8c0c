"""What differs inside a network between categories of examples: one pass over a corpus, key figures of every tensor.

    result = compare(lens, "stories.csv", sites=["blocks.*.resid_post"], out="runs/stories")
    result.ranking().head(10)

Batches are padded and sorted by length within a window, each tensor is read where it passes, and what is kept does not
grow with the corpus. With `out` each window is written when it is done; `resume=True` goes on behind the last.

Several processes share a corpus by `shard`: each is given the same examples, and what they return merges to what one
process alone would have found.

    parts = [compare(lens, corpus, sites=sites, shard=(i, 4)) for i in range(4)]  # each in a process of its own
    whole = functools.reduce(Comparison.merge, parts)

On a Ray cluster `compare_shards.compare_on_ray` does that by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crosslens.adapters import InputError, Inspector, Site
from crosslens.adapters.capabilities import capture_capability

from .base import Progress
from .comparison import Comparison, Facts, is_pattern
from .comparison_store import Folder
from .engine import KPIS
from .examples import Corpus, Example, Survey, no_examples
from .progress import progress_bar
from .window import Reader, windows
from .workload import weights_digest

DEFAULT_KPIS = tuple(name for name in KPIS if name != "count")
"""`count` is the length of the text; `entropy` is there at attention patterns only."""

SiteNames = str | Site | Sequence[str | Site]


def compare(
    lens: Inspector,
    examples: Any,
    *,
    sites: SiteNames,
    kpis: Sequence[str] | None = None,
    text: str = "text",
    categories: str | Sequence[str] = "category",
    pair: str | None = None,
    directions: SiteNames = (),
    units: SiteNames = (),
    batch_size: int = 16,
    max_tokens: int | None = None,
    keep: int = 1024,
    out: str | Path | None = None,
    resume: bool = False,
    window: int = 512,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    model: str = "",
    progress: Progress | bool | None = None,
) -> Comparison:
    """Key figures of every site, example by example, by category.

    Args:
        lens: an open inspector on a language model, with a tokenizer.
        examples: a csv, jsonl or parquet file, a DataFrame, an iterable of mappings, or a `Corpus` of one; see there
            also for `text`, `categories` and `pair`. All but an iterator is read through, and checked, before anything
            runs.
        sites: sites or globs. Attention patterns make the model run with eager attention.
        kpis: of `engine.KPIS`; None for `DEFAULT_KPIS`.
        directions: sites or globs whose mean vector over the tokens is kept, of each kept example, for
            `Comparison.directions`: the test for differences that show in no scalar.
        units: sites or globs of whose every unit the mean over the tokens is compared, for `Comparison.units`.
        batch_size: examples of one forward.
        max_tokens: longest example that is accepted; None for what the model takes.
        keep: examples of each category that are kept for permutations and AUROC, chosen by a hash of their content.
        out: new or empty folder for the result; None keeps it in memory.
        resume: go on with what `out` holds; windows that are damaged are run again.
        window: examples that are sorted by length together, and written together.
        shard: (i, n): only every n-th window from the i-th on.
        seed: of the choice of kept examples.
        model: what the result calls the model; its own name if empty.
        progress: called with (examples done, examples in all, or 0 where that is not known); True shows a bar.

    Raises:
        InputError: before the first forward where it can be known: no such KPI, an example that cannot be read or is
            too long, a folder that cannot be used or holds another comparison. What was finished is kept.
        SiteError, UnsupportedError: as `Inspector.run`.
    """
    check_numbers(batch_size, keep, window, shard, max_tokens)
    corpus = examples if isinstance(examples, Corpus) else Corpus(examples, text=text, categories=categories, pair=pair)
    facts = facts_of(lens, sites, kpis, directions, units, corpus.columns, seed, keep, model)
    reader = Reader(lens, facts, batch_size, limit_of(lens, max_tokens))
    run = {"batch_size": batch_size, "window": window, "shard": list(shard)}
    survey, source = _surveyed(corpus, reader)
    folder = None if out is None else Folder(Path(out), facts, run, corpus, survey, resume)
    result = Comparison(facts)
    done = 0
    with progress_bar("examples", progress) as tell:
        for number, group in enumerate(windows(source, window)):
            if number % shard[1] != shard[0]:
                done = group[-1].number + 1
                continue
            stored = None if folder is None else folder.read(number, group)
            if stored is None:

                def told(count: int) -> None:
                    nonlocal done
                    done += count
                    tell(done, survey.n if survey else 0)

                stored = reader.window(number, group, told)
                result.add(stored)
                if folder is not None:
                    folder.write(stored, result.kept_numbers)
            else:
                result.add(stored)
            done = group[-1].number + 1
            tell(done, survey.n if survey else 0)
    result.complete = True
    if folder is not None:
        folder.finish(done)
    return result


def _surveyed(corpus: Corpus, reader: Reader) -> tuple[Survey | None, Iterable[Example]]:
    """The corpus after a first reading; of an iterator only its first example is looked at."""
    if corpus.again:
        return corpus.survey(reader.check), corpus
    source = iter(corpus)
    first = next(source, None)
    if first is None:
        raise no_examples(corpus.source)
    return None, _chain(first, source)


def _chain(first: Example, rest: Iterator[Example]) -> Iterator[Example]:
    yield first
    yield from rest


def facts_of(
    lens: Inspector, sites: SiteNames, kpis: Sequence[str] | None, directions: SiteNames, units: SiteNames,
    columns: list[str], seed: int, keep: int, model: str,
) -> Facts:  # fmt: skip
    """Everything that is asked, checked; arguments as of `compare`, which raises the same.

    Args:
        columns: names of the category columns.
    """
    if lens.architecture.family is None or lens.tokenizer is None:
        raise InputError("compare() takes texts: it needs a language model of a known family and its tokenizer")
    table = lens.architecture.sites
    chosen = table.resolve(sites)
    if not chosen:
        raise InputError("sites is empty: name at least one, such as 'blocks.*.resid_post'")
    wide = {
        name: table.resolve(given) if given else [] for name, given in (("directions", directions), ("units", units))
    }
    for site in (*chosen, *wide["directions"], *wide["units"]):
        lens._require(capture_capability(site.kind, site.local), site)
    for name, given in wide.items():
        for site in given:
            if site.kind != "canonical" or is_pattern(site.name):
                raise InputError(
                    f"{name}={site.name!r}: it has no vector of fixed length at each token; name residual, attention "
                    "or MLP sites, such as 'blocks.*.resid_post'"
                )
    sizes = {
        name: {site.name: int(np.prod([site.sizes[axis] for axis in site.axes[2:]])) for site in given}
        for name, given in wide.items()
    }
    name = model or getattr(lens.model.config, "_name_or_path", "") or type(lens.model).__name__
    return Facts(
        sites=[site.name for site in chosen], kpis=_kpis(kpis), directions=sizes["directions"], units=sizes["units"],
        columns=columns, backend=lens.name, library=_version(lens), model=str(name),
        weights=weights_digest(lens.model),
        dtype=str(lens._dtype).removeprefix("torch."), seed=seed, keep=keep,
    )  # fmt: skip


def _kpis(kpis: Sequence[str] | None) -> list[str]:
    if kpis is None:
        return list(DEFAULT_KPIS)
    if not kpis or isinstance(kpis, str) or (unknown := [name for name in kpis if name not in KPIS]):
        wrong = f"; there is no {unknown[0]!r}" if kpis and not isinstance(kpis, str) else ""
        raise InputError(f"kpis={kpis!r}: give a list of key figures{wrong}; there are {', '.join(KPIS)}")
    return list(dict.fromkeys(kpis))


def check_numbers(batch_size: int, keep: int, window: int, shard: tuple[int, int], max_tokens: int | None) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1), ("keep", keep, 2), ("window", window, 1), ("max_tokens", max_tokens, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard is {shard}; it is (i, n) with i from 0 to n - 1")


def limit_of(lens: Inspector, max_tokens: int | None) -> int:
    """Most tokens of an example: what was asked, or what the model takes if that is less."""
    config: Any = lens.model.config
    most = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 10**9)
    return min(max_tokens or 10**9, most)


def _version(lens: Inspector) -> str:
    library = lens.library or "torch"
    return f"{library} {version(library)}"
