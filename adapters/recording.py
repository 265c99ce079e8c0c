"""What `Inspector.record` gives: a recording of training steps by category, whatever library makes it.

with open_inspector("comgra", model) as lens, lens.record("module:*:output") as recording:
    for batch in batches:
        with recording.step(category="hard"):
            loss = train(batch)
    recording.table()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pandas as pd


class Recording(ABC):
    """Key figures of training steps by category."""

    @abstractmethod
    def step(self, category: str, **options: Any) -> AbstractContextManager[Any]:
        """Record what runs inside as one step of this category; the name is free-form."""

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """One figure a row: step, category, kind, site, kpi, value."""

    @abstractmethod
    def close(self) -> None:
        """Stop recording; what was recorded stays. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
