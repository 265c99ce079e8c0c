"""All cells of one backend, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from crosslens.adapters import Inspector, UnsupportedError
from crosslens.adapters.conformance.kit import FAMILIES

from . import oracle, own_forward
from .asking import Distance, ask, distance
from .design import ATTENTIONS, DTYPES, Cell
from .judge import MARGIN, Verdict, floors, judge
from .scene import Outputs, Scene, dtype_of, model_of

_NOT_TOLD = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)


class Reference:
    """What a cell must give: each kind of arithmetic, and how far rounding takes it, worked out when asked for."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._own = scene.cell.family not in FAMILIES

    @property
    def arithmetics(self) -> list[str]:
        """The one asked for first; only eager attention has patterns."""
        asked = self.scene.cell.attention
        if self.scene.cell.local == "attn.pattern" or self.scene.cell.method == "attention":
            asked = "eager"
        alone = self.scene.cell.local == "attn.pattern" or self.scene.cell.family == "gemma2"  # no fused attention
        others = ATTENTIONS[:1] if alone else ATTENTIONS
        return list(dict.fromkeys((asked, *others, oracle.THROUGHOUT)))

    def value(self, arithmetic: str) -> Tensor | None:
        """Of the cell's edit."""
        return own_forward.drawn(self.scene, arithmetic) if self._own else oracle.drawn(self.scene)

    def answer(self, arithmetic: str) -> Outputs:
        """What is right in this arithmetic."""
        if self._own:
            return own_forward.answer(self.scene, "float64", arithmetic)
        return oracle.answer(self.scene, oracle.oracle_of(self.scene.cell.family, arithmetic))

    def floors(self, truth: Outputs) -> dict[str, float]:
        """Relative error by rounding alone, in each dtype."""
        asked, found = self.arithmetics[0], {}
        for dtype in DTYPES[1:]:
            if self._own:  # what the model itself makes of it in that dtype
                rounded = [own_forward.answer(self.scene, dtype, asked)]
            else:
                draws = range(3 if self.scene.cell.method else 1)  # attribution is of few numbers: luck counts
                oracles = [oracle.oracle_of(self.scene.cell.family, asked, dtype, draw) for draw in draws]
                rounded = [oracle.answer(self.scene, each) for each in oracles]
            found[dtype] = max(distance(self.scene, each, truth).relative for each in rounded)
        return floors(found, by_definition=self.scene.cell.method == "value_zeroing")


class Lenses:
    """Open inspectors of one backend, by model; those of the last family and attention are kept."""

    def __init__(self, backend: type[Inspector]) -> None:
        self.backend = backend
        self._model: tuple[str, str] = ("", "")
        self._open: dict[str, Inspector] = {}

    def of(self, cell: Cell, dtype: str) -> Inspector:
        """The one for a cell; opening may raise whatever the library raises."""
        if (cell.family, cell.attention) != self._model:
            self.close()
            self._model = (cell.family, cell.attention)
        if dtype not in self._open:
            self._open[dtype] = self.backend(*model_of(cell.family, dtype, cell.attention))
        return self._open[dtype]

    def close(self) -> None:
        """Close all."""
        for lens in self._open.values():
            lens.close()
        self._open.clear()


def measured(
    backend: type[Inspector],
    cells: Iterable[Cell],
    dtypes: Callable[[Cell], Sequence[str]] = lambda cell: DTYPES,
) -> Iterator[tuple[Cell, dict[str, Verdict]]]:
    """The verdicts on each cell, by dtype, float64 first; a cell that is refused in float64 has that verdict alone."""
    lenses = Lenses(backend)
    try:
        for cell in cells:
            yield cell, _cell(lenses, cell, dtypes(cell))
    finally:
        lenses.close()


def _cell(lenses: Lenses, cell: Cell, dtypes: Sequence[str]) -> dict[str, Verdict]:
    scene, verdicts = Scene(cell), dict[str, Verdict]()
    reference = Reference(scene)
    floor: dict[str, float] = {}
    answers: dict[str, Outputs] = {}
    for dtype in dtypes:
        given, value = _Asked(lenses, scene, dtype), reference.value(reference.arithmetics[0])
        try:
            given.ask(value)
        except UnsupportedError as error:
            verdicts[dtype] = Verdict("refused", why=str(error))
            if dtype == "float64":
                break
            continue
        except Exception as error:  # whatever a library raises is a result
            verdicts[dtype] = Verdict("error", why=f"{type(error).__name__}: {error}".partition("\n")[0])
            continue
        distances: dict[str, Distance] = {}
        for arithmetic in reference.arithmetics:
            if arithmetic not in answers:
                answers[arithmetic] = reference.answer(arithmetic)
            floor = floor or reference.floors(answers[arithmetic])
            got = given.ask(reference.value(arithmetic))
            distances[arithmetic] = distance(scene, got, answers[arithmetic], dtype_of(dtype))
            if distances[arithmetic].relative <= MARGIN[dtype] * floor[dtype]:
                break
        verdicts[dtype] = judge(dtype, distances, floor, verdicts.get("float64"), given.warned)
    return verdicts


class _Asked:
    """Answers of a backend in one cell and dtype, by the value of its edit."""

    def __init__(self, lenses: Lenses, scene: Scene, dtype: str) -> None:
        self._lenses, self._scene, self._dtype = lenses, scene, dtype
        self._last: tuple[Tensor | None, Outputs] | None = None
        self.warned = ""

    def ask(self, value: Tensor | None) -> Outputs:
        """The answer; the same one while the value is the same."""
        if self._last is not None and _same(self._last[0], value):
            return self._last[1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lens: Any = self._lenses.of(self._scene.cell, self._dtype)
            self._last = (value, ask(lens, self._scene, dtype_of(self._dtype), value))
        told = [str(each.message) for each in caught if not issubclass(each.category, _NOT_TOLD)]
        self.warned = told[0].partition("\n")[0] if told else ""
        return self._last[1]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all()))
