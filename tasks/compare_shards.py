"""`compare` on a Ray cluster: windows of examples go to replicas of the model, and what these add up comes back.

    result = compare_on_ray("smollm2-135m", "hooks", "stories.csv", sites=["blocks.*.resid_post"], workers=4)

A shard is a window: so many examples, whose figures and sums by category a replica returns. They are merged in the
order of the corpus, whichever came first, so that the answer is that of `compare` in one process, to the last bit on
processors of one kind, whatever the number of workers. A window whose replica, or node, is lost is run again by
another; each is merged once. With `out` the folder is that of `compare`, on the driver: either goes on with what the
other began.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crosslens.adapters import InputError, load_backend, open_inspector

from .base import Progress
from .compare import SiteNames, check_numbers, facts_of, limit_of
from .comparison import Comparison, Facts
from .comparison_store import NAME, Folder
from .examples import Corpus, Example, no_examples
from .models import load_model
from .progress import progress_bar
from .ray_cluster import cluster
from .ray_pool import Lost, Pool
from .window import Reader, Window, windows

_WINDOW = 512
_SHARES = 4  # windows of a worker, at least, where the corpus has as many examples
_AHEAD = 3  # windows of a worker that may wait for an earlier one to be merged
_LONG = 64  # long texts that a replica looks at together
_Call = tuple[Any, ...]
"""A replica's method, and its arguments."""


class Replica:
    """A model that reads windows; an actor on some node.

    Args:
        model, backend: names.
        asked: of `compare.facts_of`.
        batch_size, max_tokens: of `compare`.
        threads: that it computes with.
    """

    def __init__(
        self, model: str, backend: str, asked: dict[str, Any], batch_size: int, max_tokens: int | None, threads: int
    ) -> None:
        self._model, self._backend, self._asked, self._threads = model, backend, asked, threads
        self._batch_size, self._max_tokens = batch_size, max_tokens

    def ready(self) -> Facts:
        """Load the model; what will be taken of it."""
        import torch

        torch.set_num_threads(self._threads)
        network, tokenizer = load_model(self._model)
        lens = open_inspector(self._backend, network, tokenizer)  # until this process ends
        facts = facts_of(lens, **self._asked, model=self._model)
        self._reader = Reader(lens, facts, self._batch_size, limit_of(lens, self._max_tokens))
        return facts

    def limit(self) -> int:
        """Most tokens of an example."""
        return self._reader.limit

    def check(self, examples: Sequence[Example]) -> None:
        """Raise for an example that is too long."""
        for example in examples:
            self._reader.check(example)

    def window(self, number: int, examples: list[Example]) -> Window:
        """Run a window."""
        return self._reader.window(number, examples, lambda done: None)


def compare_on_ray(
    model: str,
    backend: str,
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
    window: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    threads: int = 1,
    address: str | None = None,
    progress: Progress | bool | None = None,
) -> Comparison:
    """Key figures of every site, example by example, by category, from replicas of a model on a Ray cluster.

    Args:
        model, backend: names; every node can load them.
        examples: as of `compare`, and so are all that are not named here. They are read where this is called.
        window: examples of a shard; None for 512, or fewer where the corpus is too small to give each worker its share.
        workers: replicas, each with `threads` CPUs; None for one a node.
        address: of the cluster: see `ray_cluster.cluster`.

    Raises:
        BackendNotInstalledError: Ray, or the backend's library, is missing.
        InputError: as `compare`; or no such cluster, nodes whose software differs, or a window that was lost with its
            worker three times. What was finished is kept.
        ModelError: a node cannot load the model.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    check_numbers(batch_size, keep, _WINDOW if window is None else window, (0, 1), max_tokens)
    load_backend(backend)
    corpus = examples if isinstance(examples, Corpus) else Corpus(examples, text=text, categories=categories, pair=pair)
    survey, source = (corpus.survey(), iter(corpus)) if corpus.again else (None, _some(corpus))
    asked = {
        "sites": sites, "kpis": kpis, "directions": directions, "units": units, "columns": corpus.columns, "seed": seed,
        "keep": keep,
    }  # fmt: skip
    with cluster(address) as ray:
        most = sum(int(node["Resources"].get("CPU", 0)) >= threads for node in ray.nodes() if node["Alive"])
        if not most:
            raise InputError(f"no node of the cluster has {threads} CPUs, which a worker's threads need")
        workers = workers or most
        if window is None:
            window = _window(survey.n if survey else None, workers, batch_size, out, resume)
        if survey is not None:
            workers = min(workers, math.ceil(survey.n / window))
        told: list[Facts] = []
        actors = ray.remote(Replica).options(num_cpus=threads, scheduling_strategy="SPREAD")
        pool: Pool[_Call] = Pool(
            lambda: dict.fromkeys(range(workers)),
            lambda _: actors.remote(model, backend, asked, batch_size, max_tokens, threads),
            lambda actor, call: getattr(actor, call[0]).remote(*call[1:]),
            ready=lambda facts: _refuse_other(told, facts),
        )
        with pool:
            limit = _results(pool, [("limit",)] * workers)[0]  # one for each: all load at once
            if survey is not None:
                long = (example for example in corpus if len(example.text.encode()) + 8 > limit)
                _results(pool, (("check", some) for some in windows(long, _LONG)))
            run = {"batch_size": batch_size, "window": window, "shard": [0, 1]}
            folder = None if out is None else Folder(Path(out), told[0], run, corpus, survey, resume)
            with progress_bar("examples", progress) as tell:
                merged = _Merged(Comparison(told[0]), folder, survey.n if survey else 0, tell)
                jobs = merged.missing(windows(source, window))
                for (_, number, _), found, _ in pool.run(jobs, ahead=_AHEAD * workers):
                    merged.take(number, _checked(found))
                return merged.finish()


def _some(corpus: Corpus) -> Iterator[Example]:
    source = iter(corpus)
    first = next(source, None)
    if first is None:
        raise no_examples(corpus.source)
    return chain([first], source)


class _Merged:
    """Windows, merged in their order."""

    def __init__(self, result: Comparison, folder: Folder | None, total: int, tell: Progress) -> None:
        self._result, self._folder, self._total, self._tell = result, folder, total, tell
        self._waiting: dict[int, tuple[Window, bool]] = {}
        self._next = self._done = 0

    def missing(self, groups: Iterable[list[Example]]) -> Iterator[_Call]:
        """The calls for those that the folder does not hold; those that it holds are taken."""
        for number, group in enumerate(groups):
            stored = None if self._folder is None else self._folder.read(number, group)
            if stored is None:
                yield "window", number, group
            else:
                self.take(number, stored, stored=True)

    def take(self, number: int, window: Window, stored: bool = False) -> None:
        """A window is here; merge it, and those that wait for it, if all before it are."""
        self._waiting[number] = window, stored
        while self._next in self._waiting:
            window, stored = self._waiting.pop(self._next)
            self._result.add(window)
            if self._folder is not None and not stored:
                self._folder.write(window, self._result.kept_numbers)
            self._next += 1
            self._done += len(window.examples)
            self._tell(self._done, self._total)

    def finish(self) -> Comparison:
        """The whole."""
        assert not self._waiting
        self._result.complete = True
        if self._folder is not None:
            self._folder.finish(self._done)
        return self._result


def _results(pool: Pool[_Call], calls: Iterable[_Call]) -> list[Any]:
    return [_checked(found) for _, found, _ in pool.run(calls)]


def _checked(found: Any) -> Any:
    if isinstance(found, Lost):
        raise InputError(
            f"the same examples were lost {found.tries} times with their worker (last: {found.reason}); what was "
            "finished is kept. If memory ran out, take fewer workers or a smaller batch_size"
        )
    return found


def _refuse_other(told: list[Facts], facts: Facts) -> None:
    """All replicas must be the same; the first says what they are."""
    if told and (difference := told[0].difference(facts)):
        raise InputError(f"the nodes of the cluster differ, and their figures cannot be merged: {difference}")
    told.append(facts)


def _window(n: int | None, workers: int, batch_size: int, out: str | Path | None, resume: bool) -> int:
    """Examples of a window: those of what is gone on with, else what gives every worker its share."""
    if out is not None and resume:
        try:
            return int(json.loads(Path(out, NAME).read_text(encoding="utf-8"))["run"]["window"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or `Folder` says what is wrong with it
    if n is None:
        return _WINDOW
    share = math.ceil(n / (workers * _SHARES * batch_size)) * batch_size
    return max(1, min(_WINDOW, share))
