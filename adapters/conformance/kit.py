"""What a conformance check is, how its outcome is judged, and the scene that it plays in.

A check belongs to one promise of the contract and needs some capabilities. Where all of them are `supported` it must
pass. Where one is not, it is a strict expected failure: the backend must refuse with `UnsupportedError`, and with its
refusals taken away the check must really fail; if it passes, the table of capabilities is out of date and says so.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from crosslens.adapters.errors import UnsupportedError
from crosslens.adapters.inspector import Inspector

from .models import tiny_model
from .oracle import Oracle, OracleRun

Promise = Literal["right", "owned", "order-free", "batch-invariant", "positions", "refuses", "no-trace", "not-alone"]
Status = Literal["passed", "failed", "xfailed", "xpassed"]
Padding = Literal["none", "left", "right"]

FAMILIES = ("llama", "gpt2", "gpt_neox")
NOISE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Largest error allowed in a dtype, relative to the largest magnitude of the tensor; a wrong tensor is off by about 1.

Even in a float64 model some steps are computed in float32 (llama's norms, rotary tables, the softmax of eager
attention), and not the same ones in every implementation of attention: what is left is the rounding of those.
"""


@dataclass(frozen=True)
class Outcome:
    """Result of one check; `message` says what was seen where it is not plainly passed."""

    status: Status
    message: str = ""

    @property
    def good(self) -> bool:
        """Whether the backend does what it says: passed, or an expected failure."""
        return self.status in ("passed", "xfailed")

    def raise_if_bad(self) -> None:
        """Raise AssertionError unless good, for use under pytest."""
        if not self.good:
            raise AssertionError(f"{self.status}: {self.message}")


class Context:
    """A backend under test, with the scenes and the inspectors that its checks share.

    Args:
        backend: the Inspector class.
        gated: False takes the backend's own refusals away.
    """

    def __init__(self, backend: type[Inspector], gated: bool = True) -> None:
        self.backend: type[Inspector] = backend
        if not gated:
            self.backend = type(backend.__name__, (backend,), {"unsupported": {}})
        self._open: dict[int, Inspector] = {}

    @cached_property
    def ungated(self) -> Context:
        """The same backend without its refusals."""
        return Context(self.backend, gated=False)

    def lens(self, scene: Scene) -> Inspector:
        """An inspector on the scene's model, opened once and kept for all checks on it."""
        key = id(scene.model)
        if key not in self._open:
            self._open[key] = self.backend(scene.model, scene.tokenizer)
        return self._open[key]

    def fresh(self, family: str, dtype: torch.dtype = torch.float64, attention: str = "eager") -> tuple[Any, Any]:
        """A model and tokenizer that no other check has seen."""
        return tiny_model(family, dtype=dtype, attn_implementation=attention)

    def close(self) -> None:
        """Close every inspector that was opened here."""
        for lens in self._open.values():
            lens.close()
        self._open.clear()


@dataclass(frozen=True)
class Check:
    """One promise, made checkable.

    Args:
        id: `promise/what/where`, unique and stable.
        promise: which guarantee of the contract it belongs to.
        needs: capabilities without which it must fail.
        body: raises AssertionError where the promise is broken.
        context: of the backend.
        family: model family that it plays on, if any.
    """

    id: str
    promise: Promise
    needs: tuple[str, ...]
    body: Callable[[Context], None]
    context: Context = field(repr=False, compare=False)
    family: str = ""

    def __str__(self) -> str:
        return self.id

    @property
    def capability(self) -> str:
        """The first capability it needs; the row of the feature table that it counts for."""
        return self.needs[0]

    @property
    def group(self) -> str:
        """Promise and scene: checks of one group share a model, and run together under pytest."""
        return f"{self.promise}/{self.id.rpartition('/')[2]}"

    def missing(self) -> list[str]:
        """Needed capabilities that the backend says it lacks, in all models or in those of this family."""
        states, here = self.context.backend.supports(), self.context.backend.unsupported
        return [name for name in self.needs if not states[name] or f"{name}@{self.family}" in here]

    def run(self) -> Outcome:
        """Run the check and judge it; raises nothing but KeyboardInterrupt of the user's own."""
        missing = self.missing()
        error = self._attempt(self.context)
        if not missing:
            return Outcome("passed") if error is None else Outcome("failed", _shown(error))
        if error is None:
            return Outcome("xpassed", f"passes although {', '.join(missing)} is declared not supported")
        if not isinstance(error, UnsupportedError):
            return Outcome("failed", f"must refuse with UnsupportedError for want of {missing[0]}: {_shown(error)}")
        without = self._attempt(self.context.ungated)
        if without is None:
            return Outcome("xpassed", f"works although {', '.join(missing)} is declared not supported")
        return Outcome("xfailed", str(error))

    def _attempt(self, context: Context) -> BaseException | None:
        try:
            self.body(context)
        except Exception as error:  # whatever a library raises is a result of the check
            return error
        return None


def _shown(error: BaseException) -> str:
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.name}, line {frame.lineno} of {frame.filename.rsplit('/', 1)[-1]})"


@dataclass(frozen=True, eq=False)
class Scene:
    """A tiny model, inputs of three rows, and what the oracle says of them.

    Args:
        family: model family.
        dtype: of the model.
        padding: rows of 8, 6 and 4 tokens padded to 8 on that side; or 8 tokens each.
        attention: attention implementation of the caller's model.
        arithmetic: that of the oracle, where a backend must leave the caller's: patterns need eager attention.
    """

    family: str
    dtype: torch.dtype
    padding: Padding = "none"
    attention: str = "eager"
    arithmetic: str | None = None

    @property
    def id(self) -> str:
        """`family-dtype-padding`, and the attention implementation where it is not eager."""
        parts = [self.family, str(self.dtype).removeprefix("torch."), self.padding]
        return "-".join(parts if self.attention == "eager" else [*parts, self.attention])

    @cached_property
    def _pair(self) -> tuple[Any, Any]:
        return tiny_model(self.family, dtype=self.dtype, attn_implementation=self.attention)

    @property
    def model(self) -> Any:
        """The model; checks on a shared scene leave it as it is."""
        return self._pair[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._pair[1]

    @cached_property
    def oracle(self) -> Oracle:
        """The independent reference for this model."""
        return Oracle(self.model, attn_implementation=self.arithmetic)

    @cached_property
    def ids(self) -> Tensor:
        """(3, 8) token ids."""
        generator = torch.Generator().manual_seed(7)
        return torch.randint(3, self.model.config.vocab_size, (3, 8), generator=generator)

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        return [8, 8, 8] if self.padding == "none" else [8, 6, 4]

    @cached_property
    def mask(self) -> Tensor | None:
        """(3, 8) attention mask, None without padding."""
        if self.padding == "none":
            return None
        column = torch.arange(8)[None]
        length = torch.tensor(self.lengths)[:, None]
        return (column < length if self.padding == "right" else column >= 8 - length).long()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the inspector is given."""
        return {"input_ids": self.ids} | ({} if self.mask is None else {"attention_mask": self.mask})

    @cached_property
    def truth(self) -> OracleRun:
        """The oracle's run without edits."""
        return self.oracle.run(self.ids, self.mask)

    def real(self, tensor: Tensor, site: str) -> Tensor:
        """The values of a site at real tokens (for patterns: real queries and keys), flattened, in float64."""
        if self.mask is None:
            return tensor.double()
        if site.endswith("attn.pattern"):
            tensor = (tensor * self.mask[:, None, None]).transpose(1, 2)  # (batch, query, head, key)
        return tensor[self.mask.bool()].double()

    def noise(self) -> float:
        """Largest relative error that rounding explains."""
        return NOISE[self.dtype]

    def assert_close(self, got: Tensor, want: Tensor, site: str, what: str = "") -> None:
        """Equal to the oracle at every real token, up to noise; shape and dtype are the site's."""
        assert tuple(got.shape) == tuple(want.shape), (
            f"{what or site}: shape {tuple(got.shape)}, must be {tuple(want.shape)}"
        )
        assert got.dtype == self.dtype, f"{what or site}: dtype {got.dtype}, must be {self.dtype}"
        error, scale = self.error(got, want, site)
        assert error <= self.noise() * scale, (
            f"{what or site}: off by {error:.3g}, {error / scale:.2g} of its largest value; noise is {self.noise():.0e}"
        )

    def error(self, got: Tensor, want: Tensor, site: str) -> tuple[float, float]:
        """Largest difference at real tokens, and the largest magnitude there; NaN counts as infinite."""
        a, b = self.real(got, site), self.real(want, site)
        error = (a - b).abs().max().item()
        return (float("inf") if error != error else error), max(b.abs().max().item(), 1e-30)


def every(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cartesian product, as a list."""
    out: list[tuple[Any, ...]] = [()]
    for axis in axes:
        out = [(*head, item) for head in out for item in axis]
    return out


def expect(kind: type[Exception], call: Callable[[], Any], text: str) -> None:
    """Assert that the call raises an error of that kind which mentions the text."""
    try:
        call()
    except kind as error:
        assert text in str(error), f"the error does not mention {text!r}: {error}"
        return
    raise AssertionError(f"no {kind.__name__} was raised")
