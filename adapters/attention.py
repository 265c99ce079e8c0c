"""Making attention patterns visible: only the eager implementation of attention has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import UnsupportedError

if TYPE_CHECKING:
    from .plan import Probe


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


def visit_returned(probe: Probe, value: Any) -> Any:
    """Show a probe the pattern that eager attention returns beside its output, where a library sees no softmax.

    Raises:
        UnsupportedError: this model's attention modules return none.
    """
    if not isinstance(value, tuple) or len(value) < 2 or not isinstance(value[1], Tensor):
        raise UnsupportedError(
            f"site {probe.visits[0].site.name!r}: the attention module of this model does not return its pattern, and "
            "this library sees no other tensor inside it; the hooks backend does"
        )
    new = probe(value[1])
    return value if new is value[1] else (value[0], new, *value[2:])


def begin_graph(value: Tensor) -> Tensor:
    """In a frozen model nothing before the pattern asks for a gradient, and when it is returned it is used already."""
    return value if value.requires_grad else value.detach().requires_grad_()
