"""penzai 0.2.5: a token id beyond the vocabulary is taken for the last one.

Claim: JAX clamps an index that is out of range; `EmbeddingLookup` gives the last row of the table.
Documentation followed: documentation of `pz.nn.EmbeddingLookup`.
Right: compare ids with the vocabulary. Through crosslens an id out of range is an error.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz


def main() -> dict[str, Any]:
    """Look up token 5000 of 10; `holds` where it is token 9."""
    table = pz.nn.EmbeddingTable.from_config("table", jax.random.key(0), vocab_size=10, embedding_axes={"d": 4})
    lookup = pz.nn.EmbeddingLookup(table)
    big, last = (lookup(pz.nx.wrap(jnp.asarray([token])).tag("seq")).unwrap("seq", "d") for token in (5000, 9))
    return {
        "claim": "a token id beyond the vocabulary is taken for the last one",
        "library": "penzai",
        "version": version("penzai"),
        "upstream": "not found upstream",
        "observed": {"is the last token's": bool((big == last).all())},
        "expected": {"is the last token's": False},
        "holds": bool((big == last).all()),
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
