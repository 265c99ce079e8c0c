"""penzai 0.2.5: an insertion at a layer that does not exist changes nothing, without an error.

Claim: `pick_nth_selected(7)` of three selects nothing, and `insert_after` of an empty selection is the model as it
was.
Documentation followed: the tutorial "How to Think in Penzai", sections on selectors.
Right: `.assert_count_is(1)`. Through crosslens a layer out of range is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz


def main() -> dict[str, Any]:
    """Zero layer 7 of 3; `holds` where the output is the plain one."""
    layers = [pz.nn.Affine.from_config(f"layer{i}", jax.random.key(i), {"x": 4}, {"x": 4}) for i in range(3)]
    model, inputs = pz.nn.Sequential(layers), pz.nx.wrap(jnp.ones(4)).tag("x")
    plain = model(inputs)
    selected = pz.select(model).at_instances_of(pz.nn.Affine).pick_nth_selected(7)
    got = selected.insert_after(_Zero())(inputs)
    effect = float(jnp.abs((got - plain).unwrap("x")).max())
    return {
        "claim": "an insertion at a layer that does not exist changes nothing, without an error",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"layers selected": selected.count(), "effect": effect},
        "expected": {"layers selected": "an error", "effect": "an error"},
        "holds": selected.count() == 0 and effect == 0,
    }


@pz.pytree_dataclass
class _Zero(pz.nn.Layer):  # type: ignore[misc]  # penzai has no types
    def __call__(self, value: Any, **_: Any) -> Any:
        return 0 * value


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
