"""The kit itself: it catches what it is for, and judges unsupported capabilities strictly."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from crosslens.adapters import InputError, Support, UnsupportedError, zero
from crosslens.adapters.conformance import conformance_checks
from crosslens.adapters.hooks import HooksInspector
from crosslens.adapters.plan import Plan

from .broken import BROKEN

FAMILIES = ("llama", "gpt2")


def _failures(backend: type[HooksInspector], promise: str) -> list[str]:
    found = []
    for check in conformance_checks(backend, FAMILIES):
        if check.promise == promise:
            if not check.run().good:
                found.append(check.id)
            if found and "float64" in found[-1]:
                break
    return found


@pytest.mark.parametrize(
    ("promise", "backend"),
    [(promise, backend) for promise, broken in BROKEN.items() for backend in broken],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_broken_backend_is_caught_by_the_check_of_its_guarantee(promise: str, backend: type[HooksInspector]) -> None:
    assert _failures(backend, promise), f"no check of {promise!r} noticed {backend.__name__}"


def test_every_guarantee_has_a_broken_backend() -> None:
    assert set(BROKEN) == {check.promise for check in conformance_checks(HooksInspector, FAMILIES)}


class ClaimsTooLittle(HooksInspector):
    """Declares that it cannot do what it can."""

    unsupported: ClassVar[dict[str, Support]] = {"edit.zero": Support("upstream", "the library cannot set zeros")}


class HonestGap(HooksInspector):
    """Really cannot set zeros, and says so."""

    unsupported: ClassVar[dict[str, Support]] = {"edit.zero": Support("upstream", "the library cannot set zeros")}

    def _forward(self, plan: Plan) -> Any:
        for visit in plan.visits:
            visit.edits = [edit for edit in visit.edits if edit.edit.kind != "zero"]
        return super()._forward(plan)


class CrashesInstead(HonestGap):
    """Declares the gap, but does not refuse with UnsupportedError."""

    def _require(self, capability: str, site: Any = None) -> None:
        if capability == "edit.zero":
            raise RuntimeError("boom")
        super()._require(capability, site)


def _zero_check(backend: type[HooksInspector]) -> Any:
    return next(c for c in conformance_checks(backend, ("llama",)) if c.id.startswith("right/zero/"))


def test_a_gap_that_has_closed_is_reported() -> None:
    outcome = _zero_check(ClaimsTooLittle).run()
    assert outcome.status == "xpassed"
    assert "edit.zero" in outcome.message
    with pytest.raises(AssertionError, match="xpassed"):
        outcome.raise_if_bad()


def test_an_honest_gap_is_an_expected_failure_with_its_reason() -> None:
    outcome = _zero_check(HonestGap).run()
    assert outcome.status == "xfailed"
    assert "the library cannot set zeros" in outcome.message


def test_an_unsupported_operation_must_refuse_not_crash() -> None:
    outcome = _zero_check(CrashesInstead).run()
    assert outcome.status == "failed"
    assert "UnsupportedError" in outcome.message


def test_a_refusal_comes_before_the_model_runs() -> None:
    model = torch.nn.Linear(2, 2)
    with HonestGap(model) as lens, pytest.raises(UnsupportedError, match=r"edit\.zero"):
        lens.run(torch.ones(1, 2), edits=[zero("module::output")])


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(InputError, match="no model of"):
        conformance_checks("hooks", ["mamba"])
