"""What `Inspector.record` gives: key figures of training steps by category, whatever library takes them.

    with open_inspector("comgra", model) as lens, lens.record("module:*:output") as recording:
        for batch, kind in batches:
            with recording.step(kind) as step:
                loss = criterion(model(batch))
                step.loss(loss)
                loss.backward()
        recording.table()

The training loop stays the caller's: recording changes no number in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from .errors import InputError
from .snapshots import Gradients, Snapshots

if TYPE_CHECKING:
    import pandas as pd


class Step:
    """One training step while it runs, as `with recording.step(...) as step` gives it.

    Args:
        number: of the step, from 0.
        seen: what is collected in it; None for a step that is not recorded, in which all else does nothing.
        check: raises for a category, or categories of samples, that the recording cannot take.

    Attributes:
        category: as decided; None until then, and for a step that is dropped.
        samples: category of each sample, if given.
        decided: whether `category` is final.
        losses: name -> number.
    """

    def __init__(self, number: int, seen: Snapshots | None, check: Callable[[str, Sequence[str] | None], None]) -> None:
        self.number = number
        self.seen = seen
        self.category: str | None = None
        self.samples: list[str] | None = None
        self.decided = False
        self.losses: dict[str, Tensor] = {}
        self._check = check
        self._groups: dict[str, Gradients] = {}

    def loss(self, value: Tensor | float, name: str = "loss") -> None:
        """Record a number of this step under a name; a later change of the tensor does not reach it.

        Raises:
            InputError: it is not one number, or the name is taken in this step.
        """
        number = torch.as_tensor(value).detach()
        if number.numel() != 1 or number.is_complex():
            raise InputError(f"loss {name!r} has shape {tuple(number.shape)}; it must be one real number")
        if name in self.losses:
            raise InputError(f"this step has a loss {name!r} already; give each a name of its own")
        dtype = torch.float32 if number.dtype in (torch.float16, torch.bfloat16) else number.dtype
        dtype = dtype if number.is_floating_point() else torch.float64
        self.losses[name] = number.reshape(()).to(dtype, copy=True)

    def gradients(self, group: str) -> None:
        """Name the gradients that have come since the step began, or since the last call: those of one loss, say.

        Those that come after the last call, or without any, are the group `gradient`.

        Raises:
            InputError: gradients are not recorded, or the group is taken in this step.
        """
        if group in self._groups:
            raise InputError(f"this step has a group of gradients {group!r} already; give each a name of its own")
        if self.seen is not None and not self.seen.reads_gradients:
            raise InputError("this recording takes no gradients; lens.record(..., gradients=True) does")
        self._groups[group] = {} if self.seen is None else self.seen.take()

    def groups(self) -> dict[str, Gradients]:
        """Group -> gradients, of a step that is over."""
        rest = {} if self.seen is None else self.seen.take()
        if rest and "gradient" in self._groups:
            raise InputError(
                f"step {self.number}: gradients came after those of the group 'gradient'; name it otherwise"
            )
        return self._groups | ({"gradient": rest} if rest else {})

    def release(self) -> None:
        """Let go of all tensors."""
        self.seen, self._groups = None, {}

    def decide(self, category: str | None, samples: Sequence[str] | None = None) -> None:
        """Say what category the step has turned out to be, where `step()` was not told.

        Args:
            category: free-form; None drops the step.
            samples: category of each sample of the batch; samples whose figures are kept are chosen evenly from them.

        Raises:
            InputError: a category that is no text, or another one than was given before.
        """
        if self.decided and category != self.category:
            raise InputError(f"step {self.number} is {self.category!r} already and cannot become {category!r}")
        if category is not None and (not isinstance(category, str) or not category):
            raise InputError(f"the category is {category!r}; it must be a text that is not empty")
        if samples is not None and (isinstance(samples, str) or not all(isinstance(each, str) for each in samples)):
            raise InputError("samples= must be a list of texts, the category of each sample of the batch")
        if category is not None:
            self._check(category, samples)
        self.category, self.decided = category, True
        self.samples = None if samples is None else list(samples)


class Recording(ABC):
    """Key figures of training steps by category."""

    @abstractmethod
    def step(self, category: str | None = None, samples: Sequence[str] | None = None) -> AbstractContextManager[Step]:
        """Record what runs inside as one step; steps count from 0. An error inside drops the step.

        Args:
            category: free-form; None where `Step.decide` will say.
            samples: as in `Step.decide`.

        Raises:
            ClosedError: the recording or its inspector is closed.
            InputError: inside another step of the same recording, or a category that is no text; at the end of the
                step where its category was never decided.
        """

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """One figure a row, all steps so far; allowed after `close()`. Its columns are the backend's to document."""

    @abstractmethod
    def close(self) -> None:
        """Stop recording; what was recorded stays. A step that is running is dropped. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
