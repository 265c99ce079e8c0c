"""Every row, in the order of the page."""

from __future__ import annotations

from . import nnbench, nnsight_costs, noise_floors, tdhook_bench, torchlens_table, vllm_lens
from .claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for module in (torchlens_table, nnsight_costs, tdhook_bench, noise_floors, nnbench, vllm_lens)
    for claim in module.CLAIMS
}

LIBRARIES = ("transformer-lens", "nnsight", "tdhook", "torchlens", "captum")
"""Distributions whose versions a page names."""


def groups(ids: list[str], apart: bool = False) -> dict[str, list[str]]:
    """Rows that can be measured, by the process that they share; or each by itself."""
    found: dict[str, list[str]] = {}
    for each in ids:
        if CLAIMS[each].measure is not None:
            found.setdefault(each if apart else CLAIMS[each].group, []).append(each)
    return found
