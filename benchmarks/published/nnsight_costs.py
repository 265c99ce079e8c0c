"""nnsight's fixed costs of a trace, and its generation against plain hooks.

The release notes of 0.6.0 give microseconds of whole traces of a 12-layer MLP, without its width. The benchmark of
generation, `tests/performance/benchmark_interventions.py`, compares unequal work: the hooks' arm feeds the whole
sequence anew for every token and copies what it keeps; nnsight's arm is `generate`, with the cache of keys and values,
and copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .claim import Claim, Found, Kept, Scale, Source, milliseconds, short
from .intervene import mlp
from .subjects import agree, gpt2, paired, shadow, tokens

NOTES = Source(
    "nnsight, release notes of 0.6.0",
    "github.com/ndif-team/nnsight, 0.6.0.md, Performance; the same table in docs/developing/performance.md",
    "0.6.0 (docs at de41e13)",
    "2026",
)
LOG = Source(
    "nnsight, benchmark of interventions",
    "github.com/ndif-team/nnsight, tests/performance/benchmark_interventions.py and benchmark_results.log",
    "a6802d3; GPT-2 on CUDA, 5 runs of one process",
    "2026",
)
_LAYERS, _WIDTH = 12, 64
_MLP = f"{_LAYERS}-layer MLP of width {_WIDTH} (theirs is not stated), 1 row, `NNsight(model).trace(x)`"


def _traced(scale: Scale, saves: int) -> Kept:
    """A whole trace, its forward included, that saves the outputs of the first layers."""
    from nnsight import NNsight

    model = mlp(_LAYERS, 4 if scale.tiny else _WIDTH, scale.seed)
    x = torch.randn(1, model.width)
    wrapped = NNsight(shadow(model))
    envoys = list(wrapped.layers)[:saves]

    def empty() -> None:
        with wrapped.trace(x):
            pass

    def saving() -> list[Tensor]:
        kept: list[Tensor] = []
        with wrapped.trace(x):
            for envoy in envoys:
                kept.append(envoy.output.save())
        return kept

    right = x
    for layer, got in zip(model.layers, saving(), strict=False):
        right = layer(right)
        agree(got, right, "a layer's output")
        right = model.activation(right)
    return paired(saving if saves else empty, lambda: model(x), scale, saves=saves)


def empty(scale: Scale) -> Kept:
    """A trace that saves nothing."""
    return _traced(scale, 0)


def one(scale: Scale) -> Kept:
    """One save."""
    return _traced(scale, 1)


def twelve(scale: Scale) -> Kept:
    """A save for each layer."""
    return _traced(scale, _LAYERS)


def _generation(scale: Scale) -> tuple[Any, Tensor, int]:
    model = gpt2(scale)
    return model, tokens(model, 1, 9, scale.seed), 3 if scale.tiny else 5


def _nnsight_generates(model: Any, ids: Tensor, new: int) -> Any:
    """A call that generates, saving attention and MLP of every layer at each step; its tokens and what it saved."""
    from nnsight import NNsight

    module = shadow(model)
    wrapped = NNsight(module)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def call() -> tuple[Tensor, list[Any]]:
        kept: list[Any] = []
        with torch.no_grad(), wrapped.trace(ids, fn=module.generate, **options) as tracer:
            for _step in tracer.iter[:new]:
                for block in wrapped.transformer.h:
                    kept.append(block.attn.output[0].save())
                    kept.append(block.mlp.output.save())
            out = tracer.result.save()
        return out, kept

    return call


def _hooks_generate(model: Any, ids: Tensor, new: int, *, cache: bool) -> Any:
    """The same with hooks that copy; without the cache as in the published program, with it by `generate`."""

    def call() -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []

        def hook(_module: Any, _given: Any, output: Any) -> None:
            kept.append((output[0] if isinstance(output, tuple) else output).detach().clone())

        modules = [each for block in model.transformer.h for each in (block.attn, block.mlp)]
        handles = [each.register_forward_hook(hook) for each in modules]
        try:
            with torch.no_grad():
                if cache:
                    out = model.generate(
                        ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0,
                    )  # fmt: skip
                    return out, kept
                out = ids
                for _step in range(new):
                    following = model(out).logits[:, -1].argmax(-1, keepdim=True)
                    out = torch.cat([out, following], dim=-1)
                return out, kept
        finally:
            for handle in handles:
                handle.remove()

    return call


def _generated(scale: Scale, *, cache: bool) -> Kept:
    model, ids, new = _generation(scale)
    ours, theirs = _hooks_generate(model, ids, new, cache=cache), _nnsight_generates(model, ids, new)
    (tokens_a, kept_a), (tokens_b, kept_b) = ours(), theirs()
    if not torch.equal(tokens_a, tokens_b):
        raise ValueError("the two arms write different tokens")
    if len(kept_a) != len(kept_b):
        raise ValueError(f"{len(kept_a)} tensors by hooks, {len(kept_b)} by nnsight")
    if cache:
        for a, b in zip(kept_a, kept_b, strict=True):
            agree(b, a, "a saved tensor")
    positions = [sum(each.shape[1] for each in kept) for kept in (kept_a, kept_b)]
    return paired(theirs, ours, scale, hooks_positions=positions[0], nnsight_positions=positions[1])


def generation_published(scale: Scale) -> Kept:
    """The published pair of arms."""
    return _generated(scale, cache=False)


def generation_equal(scale: Scale) -> Kept:
    """Both arms through `generate`, with the cache."""
    return _generated(scale, cache=True)


def _fixed(seen: Found, rows: Mapping[str, Found]) -> str:
    """Fixed and marginal cost, here and there, from the three rows."""
    first, last = rows.get("nnsight.empty"), rows.get("nnsight.twelve")
    if seen.step_s is None or first is None or last is None or first.step_s is None or last.step_s is None:
        return "not established"
    bare, each = 1e6 * (first.bare_s or 0.0), 1e6 * (last.step_s - first.step_s) / _LAYERS
    return (
        f"Here {short(bare)} µs of it are the forward, and a save costs {short(each)} µs; the notes put a save at 34. "
        "0.8.1 serves a trace by greenlets where 0.6.0 had threads and hooks; machine, width and version all differ: "
        "what each is worth is not established."
    )


def _as_empty(seen: Found, rows: Mapping[str, Found]) -> str:
    return "As for the empty trace."


def _unequal(seen: Found, rows: Mapping[str, Found]) -> str:
    equal = rows.get("nnsight.generation_equal")
    facts = seen.facts
    start = (
        f"Unequal work: the hooks' arm computes and copies {facts.get('hooks_positions')} positions, nnsight's "
        f"computes {facts.get('nnsight_positions')} and copies none. "
    )
    if equal is None or equal.estimate is None or seen.estimate is None:
        return start + "What equal work gives is not established."
    return (
        start
        + f"With `generate` in both arms the ratio is {short(equal.estimate.value)} (next row). "
        + ("There the forward runs on a GPU, where a longer sequence costs little and what Python adds weighs more.")
    )


def _equal(seen: Found, rows: Mapping[str, Found]) -> str:
    if seen.bare_s is None:
        return "not established"
    return (
        f"The same tokens, the same tensors, compared. nnsight adds {milliseconds(seen.added_ms)} to "
        f"{milliseconds(1000 * seen.bare_s)} of generating with hooks that copy."
    )


_GENERATION = "GPT-2 small (random weights), CPU, 9 + 5 tokens, attention and MLP of all 12 layers at each step"

CLAIMS = (
    Claim("nnsight.empty", NOTES, "an empty trace", 308.0, _MLP, "µs", half=0.5, group="nnsight", measure=empty,
          why=_fixed),
    Claim("nnsight.one", NOTES, "a trace with 1 save", 474.0, _MLP, "µs", half=0.5, group="nnsight", measure=one,
          why=_as_empty),
    Claim("nnsight.twelve", NOTES, "a trace with 12 saves", 716.0, _MLP, "µs", half=0.5, group="nnsight",
          measure=twelve, why=_as_empty),
    Claim("nnsight.generation", LOG, "generation, 12 layers × 5 tokens, to hooks (config `all_opts`)", 1.75,
          _GENERATION + "; the published arms", group="nnsight", measure=generation_published, why=_unequal),
    Claim("nnsight.generation_equal", LOG, "the same, were the work equal: not published", None,
          _GENERATION + "; `generate` with its cache in both arms", group="nnsight",
          measure=generation_equal, why=_equal),
    Claim("nnsight.caching", NOTES, "PR #652: 13.2× on hits of the cache of traces", None,
          missing="the versions before and after that change: 0.8 has replaced what both did"),
)  # fmt: skip
"""The rows of this source."""
