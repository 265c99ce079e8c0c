"""Every backend keeps every promise, or is a strict expected failure with a reason."""

from __future__ import annotations

import pytest

from crosslens.adapters import backends, load_backend
from crosslens.adapters.conformance import Check, conformance_checks

CHECKS = [check for name in backends() for check in conformance_checks(name)]


def _id(check: Check) -> str:
    return f"{check.context.backend.name}/{check.id}"


@pytest.mark.parametrize("check", CHECKS, ids=_id)
def test_promise(check: Check) -> None:
    outcome = check.run()
    outcome.raise_if_bad()
    if outcome.status == "xfailed":
        pytest.xfail(outcome.message)


@pytest.mark.parametrize("name", backends())
def test_ids_are_unique_and_every_promise_is_checked(name: str) -> None:
    checks = conformance_checks(name)
    assert len({check.id for check in checks}) == len(checks)
    promises = {check.promise for check in checks}
    assert promises == {
        "right", "owned", "order-free", "batch-invariant", "positions", "refuses", "no-trace", "not-alone",
    }  # fmt: skip


@pytest.mark.parametrize("name", backends())
def test_every_supported_capability_has_a_check(name: str) -> None:
    """A capability that no check needs could be claimed without proof."""
    needed = {capability for check in conformance_checks(name) for capability in check.needs}
    supported = {capability for capability, state in load_backend(name).supports().items() if state}
    assert supported - needed == set()
