"""What a task is: a question that a researcher asks, written once for every backend.

A task is one file with one subclass of `Task`, named in `registry.py`. It prepares its data without a backend, computes
its result through an `Inspector`, computes the same result independently of every backend, says how far apart the two
are, and what the reference must show because it is known from elsewhere. `workload.py` and `scoring.py` hold what most
tasks share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from crosslens.adapters import Inspector
from crosslens.adapters.capabilities import Support

Size = Literal["smoke", "default", "full"]
Result = Mapping[str, NDArray[np.float64]]
"""Named arrays of figures; a task documents their axes."""
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class Score:
    """How a backend's result compares with the reference.

    Args:
        max_abs_error: largest absolute difference of any figure.
        max_rel_error: the same, relative to the largest reference figure of its kind.
        rank_agreement: Spearman's correlation of the ranking that the task is about, -1 to 1.
        effect: size of the reference effect, in units of `noise`; below `Task.least_effect` the task proves nothing.
        noise: what rounding alone can move a figure by, in the dtype of the run.
        right: whether the result is the reference's up to noise.
    """

    max_abs_error: float
    max_rel_error: float
    rank_agreement: float
    effect: float
    noise: float
    right: bool


@dataclass(frozen=True)
class Known:
    """What a reference must show, since it is known from the literature or from how the model behaves.

    Args:
        fact: what is known, with the figure, in one line.
        found: what the reference shows of it, with its figure.
        holds: whether the reference shows it.
    """

    fact: str
    found: str
    holds: bool


class Task(ABC):
    """One workload.

    Class attributes say what `crosslens tasks` prints.
    """

    name: ClassVar[str]
    question: ClassVar[str]
    """What a researcher asks with it, one line."""
    source: ClassVar[str]
    """Where the method comes from in the literature."""
    categories: ClassVar[str]
    """What is compared with what, one line."""
    data: ClassVar[str]
    """What it runs on: version, origin, licence."""
    needs: ClassVar[tuple[str, ...]]
    """Capabilities that a backend must support to run it."""
    needs_any: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Ways to do what remains, each a set of capabilities; a backend must support one whole, where there are any."""
    models: ClassVar[Mapping[Size, str]] = MappingProxyType({})
    """Size -> the model that it runs on, in place of those that a run asks for; empty: any language model."""
    known_on: ClassVar[tuple[str, ...]] = ("smollm2-135m",)
    """Models of which `known` speaks."""
    least_effect: ClassVar[float] = 10.0
    """Where the reference effect is smaller, in units of its noise, nobody could tell right from wrong: vacuous."""

    def lacks(self, states: Mapping[str, Support]) -> list[str]:
        """Capabilities that a backend with these states lacks to run this; of `needs_any`, those of the nearest way."""
        ways = [[need for need in way if not states[need]] for way in self.needs_any]
        return [need for need in self.needs if not states[need]] + min(ways, key=len, default=[])

    @abstractmethod
    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Any:
        """The workload: tokenised data for this model, the same for every backend. Deterministic."""

    @abstractmethod
    def run(self, lens: Inspector, work: Any, progress: Progress | None = None) -> Result:
        """The result, through the backend."""

    @abstractmethod
    def reference(self, model: nn.Module, work: Any, progress: Progress | None = None) -> Result:
        """The same result, independently of every backend (the float64 oracle)."""

    @abstractmethod
    def score(self, result: Result, reference: Result, work: Any, dtype: str) -> Score:
        """Compare a result with the reference; `dtype` is that of the model the backend ran, such as `float32`."""

    @abstractmethod
    def known(self, reference: Result, work: Any) -> Known:
        """What the reference result must show on a model of `known_on`."""

    @abstractmethod
    def step(self, lens: Inspector, work: Any) -> Callable[[], Any]:
        """One representative call through the backend, to be timed against `bare`."""

    @abstractmethod
    def bare(self, model: nn.Module, work: Any) -> Callable[[], Any]:
        """The bare forward on exactly the same inputs as `step`, without a library."""

    @abstractmethod
    def table(self, result: Result, work: Any) -> pd.DataFrame:
        """The result as a tidy table for a reader."""

    @abstractmethod
    def headline(self, result: Result, work: Any) -> str:
        """The finding in one line, such as which layer and position matter most."""
