"""Why a library has no program for an operation: (library, operation, family) -> reason; "" stands for every other.

A reason says what the library has instead, or the error that the nearest way ends in, and where its documentation says so.
"""

from __future__ import annotations

from collections.abc import Mapping

IMPOSSIBLE: Mapping[tuple[str, str, str], str] = {
    ("transformer_lens", "any_module", ""): (
        "TransformerBridge takes models of known architectures; for others `HookedRootModule` wants `HookPoint`s written "
        "into the network's source (hook_points.py). boot_transformers(hf_model=net): AttributeError: 'Net' object has no "
        "attribute 'config'"
    ),
}
