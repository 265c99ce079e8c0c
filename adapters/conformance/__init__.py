"""The conformance kit: named checks of every promise that an Inspector makes, for any backend.

    import pytest
    from crosslens.adapters.conformance import conformance_checks

    @pytest.mark.parametrize("check", conformance_checks("mine"), ids=str)
    def test_mine(check):
        check.run().raise_if_bad()

or, without pytest, `crosslens check mine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crosslens.adapters.capabilities import FAMILY_NAMES
from crosslens.adapters.errors import InputError
from crosslens.adapters.inspector import Inspector
from crosslens.adapters.registry import load_backend

from . import attributions, behaviour, coverage, networks, records, refusals, residue, right
from .kit import FAMILIES, Check, Context, Outcome, Promise

__all__ = ["FAMILIES", "Check", "Outcome", "Promise", "conformance_checks"]


def conformance_checks(backend: str | type[Inspector], families: Sequence[str] = FAMILY_NAMES) -> list[Check]:
    """Every check of one backend, in a stable order.

    Args:
        backend: a registered name, or an Inspector class.
        families: model families to check on. All are walked through; those of `FAMILIES`, which have an oracle, go
            through every site x operation x dtype x padding.

    Raises:
        InputError: an unknown backend or family.
        BackendNotInstalledError: its library is missing.
    """
    if unknown := set(families) - set(FAMILY_NAMES):
        raise InputError(f"the kit has no model of {sorted(unknown)}; it has {', '.join(FAMILY_NAMES)}")
    context = Context(load_backend(backend) if isinstance(backend, str) else backend)
    found = [*networks.checks(context), *records.networks(context)]
    for family in families:
        modules = (right, behaviour, residue, refusals, attributions) if family in FAMILIES else ()
        for module in (*modules, coverage, records):
            found += [_on(family, check) for check in module.checks(context, [family])]
    return found


def _on(family: str, check: Check) -> Check:
    return replace(check, needs=(*check.needs, f"family.{family}"), family=family)
