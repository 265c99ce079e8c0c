"""Every backend keeps every promise, or is a strict expected failure with a reason; and the feature table says so."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from crosslens.adapters import BackendNotInstalledError, Inspector, backends, load_backend
from crosslens.adapters.conformance import Check, conformance_checks
from crosslens.adapters.conformance.outcomes import expected, load

Groups = dict[str, list[Check]]


def _installed() -> dict[str, type[Inspector]]:
    found = {}
    for name in backends():
        try:
            found[name] = load_backend(name)
        except BackendNotInstalledError:
            continue
    return found


INSTALLED = _installed()
SHARE = {"torchlens": 4}
"""Of a backend that traces every operation, one check in so many of each group: all 4,000 take a quarter of an hour of
CPU time, and `crosslens check torchlens --save`, which the kept outcomes come from, runs them."""


@cache
def _groups(name: str) -> Groups:
    groups: Groups = {}
    for check in conformance_checks(name):
        groups.setdefault(check.group, []).append(check)
    return {group: checks[:: SHARE.get(name, 1)] for group, checks in groups.items()}


@pytest.mark.parametrize("name", backends())
def test_the_library_of_every_backend_is_here(name: str) -> None:
    """Where one is missing its kit cannot run, and the report says so."""
    if name not in INSTALLED:
        with pytest.raises(BackendNotInstalledError) as error:
            load_backend(name)
        pytest.skip(str(error.value))


# one test for all checks of a group: 30,000 tests of a millisecond would cost more in pytest than in the kit
@pytest.mark.parametrize(("name", "group"), [(name, group) for name in INSTALLED for group in _groups(name)])
def test_promises(name: str, group: str) -> None:
    bad = []
    for check in _groups(name)[group]:
        outcome = check.run()
        if not outcome.good:
            bad.append(f"{outcome.status} {check.id}: {outcome.message}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("name", INSTALLED)
def test_ids_are_unique_and_every_promise_is_checked(name: str) -> None:
    checks = conformance_checks(name)
    assert len({check.id for check in checks}) == len(checks)
    promises = {check.promise for check in checks}
    assert promises == {
        "right", "owned", "order-free", "batch-invariant", "positions", "refuses", "no-trace", "not-alone",
    }  # fmt: skip


@pytest.mark.parametrize("name", INSTALLED)
def test_the_feature_table_is_what_came_of_the_kit(name: str) -> None:
    """With `test_promises`, which holds each check to what is declared, this holds the kept outcomes to a real run."""
    kept = load(name)
    assert kept is not None, f"crosslens check {name} --save"
    want = replace(expected(INSTALLED[name], conformance_checks(name)), cpu_seconds=kept.cpu_seconds)
    assert kept == want, f"the kept outcomes are out of date: crosslens check {name} --save"


def test_a_gap_without_a_check_that_bears_it_out_is_no_outcome() -> None:
    checks = [check for check in conformance_checks("hooks", ["llama"]) if "attribute" not in check.needs]
    with pytest.raises(Exception, match="no check bears out that attribute is notimpl"):
        expected(INSTALLED["hooks"], checks)
