"""penzai 0.2.5: a value with a misspelled axis gives the output a new axis.

Claim: named axes that do not match are both kept: adding a vector on `y` to one on `x` gives every pair, through the
rest of the model.
Documentation followed: the tutorial "Named Axes".
Right: compare `named_shape` before and after. Through crosslens a value of another shape is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz


def main() -> dict[str, Any]:
    """Add a vector on another axis behind layer 0; `holds` where the output has the axis too."""
    layers = [pz.nn.Affine.from_config(f"layer{i}", jax.random.key(i), {"x": 4}, {"x": 4}) for i in range(3)]
    model, inputs = pz.nn.Sequential(layers), pz.nx.wrap(jnp.ones(4)).tag("x")
    plain = model(inputs)
    value = pz.nx.wrap(jnp.ones(4)).tag("y")
    first = pz.select(model).at_instances_of(pz.nn.Affine).pick_nth_selected(0).assert_count_is(1)
    got = first.insert_after(_Add(value))(inputs)
    return {
        "claim": "a value with a misspelled axis is broadcast into a new axis of the output",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"axes of the output": sorted(got.named_shape)},
        "expected": {"axes of the output": sorted(plain.named_shape)},
        "holds": sorted(got.named_shape) == ["x", "y"],
    }


@pz.pytree_dataclass
class _Add(pz.nn.Layer):  # type: ignore[misc]  # penzai has no types
    value: Any

    def __call__(self, value: Any, **_: Any) -> Any:
        return value + self.value


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
