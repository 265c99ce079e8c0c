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

from crosslens.adapters.errors import InputError
from crosslens.adapters.inspector import Inspector
from crosslens.adapters.registry import load_backend

from . import attributions, behaviour, networks, refusals, residue, right
from .kit import FAMILIES, Check, Context, Outcome, Promise

__all__ = ["FAMILIES", "Check", "Outcome", "Promise", "conformance_checks"]


def conformance_checks(backend: str | type[Inspector], families: Sequence[str] = FAMILIES) -> list[Check]:
    """Every check of one backend, in a stable order.

    Args:
        backend: a registered name, or an Inspector class.
        families: model families to check on, of `FAMILIES`.

    Raises:
        InputError: an unknown backend or family.
        BackendNotInstalledError: its library is missing.
    """
    if unknown := set(families) - set(FAMILIES):
        raise InputError(f"the kit has no oracle for {sorted(unknown)}; it has {', '.join(FAMILIES)}")
    context = Context(load_backend(backend) if isinstance(backend, str) else backend)
    found = list(networks.checks(context))
    for family in families:
        for module in (right, behaviour, residue, refusals, attributions):
            found += [_on(family, check) for check in module.checks(context, [family])]
    return found


def _on(family: str, check: Check) -> Check:
    return replace(check, needs=(*check.needs, f"family.{family}"))
