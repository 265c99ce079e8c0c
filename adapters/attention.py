"""Making attention patterns visible: only the eager implementation of attention has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eager_attention(model: Any, wanted: bool = True) -> Iterator[None]:
    """Run with the eager attention of Hugging Face models, and go back to the model's own on any exit.

    Fused implementations (sdpa, flash) never form the pattern. The two differ by rounding: about 5e-5 in the logits of
    SmolLM2-135M in float32.

    Args:
        model: a Hugging Face model.
        wanted: False does nothing.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    if not wanted or before in (None, "eager"):
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
