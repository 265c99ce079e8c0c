"""TorchLens' table of ratios to a raw forward, GPT-2 on a CPU, and the cells that it skipped.

The published program starts a fresh process for each cell, warms up five times and takes fifty samples of it alone; a
ratio there is that of two processes' medians. Here each pair is a raw forward and the operation, in one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .claim import Claim, Found, Kept, Scale, Source, Why, milliseconds, short
from .subjects import agree, gpt2, paired, shadow, tokens

TABLE = Source(
    "TorchLens, table of performance numbers",
    "github.com/johnmarktaylor91/torchlens, docs/_perf_numbers.md and benchmarks/perf_{runner,peers,models}.py",
    "measured at 712a4e5; torch 2.8.0, nnsight 0.7.0, transformer_lens 3.2.1; Intel i9-9900X",
    "2026-06-16",
)
_RAW_MS, _RAW_HOOKED_MS = 130.4, 343.4  # the table's own raw forwards
_WORKLOAD = "GPT-2 small (random weights), 4 × 64 tokens, float32, gradients on"


Operation = Callable[[Any, Tensor], Any]
"""Model, token ids -> what a library gives."""


def _subject(scale: Scale) -> tuple[Any, Tensor]:
    model = gpt2(scale)
    return model, tokens(model, 2, 6, scale.seed) if scale.tiny else tokens(model, 4, 64, scale.seed)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _detached(each) for key, each in value.items()}
    return tuple(map(_detached, value)) if isinstance(value, (tuple, list)) else value


def _hooked(model: Any, ids: Tensor) -> dict[str, Any]:
    """Every module's output by a forward hook, registered and removed in each call, as in the published program."""
    outputs: dict[str, Any] = {}

    def keeping(name: str) -> Callable[..., None]:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            outputs[name] = _detached(output)

        return hook

    handles = [module.register_forward_hook(keeping(name)) for name, module in model.named_modules() if name]
    try:
        model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def again(scale: Scale) -> Kept:
    """The raw forward against itself."""
    model, ids = _subject(scale)
    return paired(lambda: model(ids), lambda: model(ids), scale)


def hooks(scale: Scale) -> Kept:
    """Plain hooks."""
    model, ids = _subject(scale)
    outputs = _hooked(model, ids)
    error = agree(outputs["lm_head"], model(ids).logits, "logits")
    return paired(lambda: _hooked(model, ids), lambda: model(ids), scale, tensors=len(outputs), error=error)


def nnsight(scale: Scale) -> Kept:
    """Every module's output by `tracer.cache()`: the cell that the published program skips."""
    from nnsight import NNsight

    model, ids = _subject(scale)
    wrapped = NNsight(shadow(model))

    def call() -> Any:
        caches: list[Any] = []
        with wrapped.trace(ids) as tracer:
            caches.append(tracer.cache())
        return caches[0]

    kept, outputs = call(), _hooked(model, ids)
    paths: list[str] = kept.keys()
    names = [path.removeprefix("model.") for path in paths if path != "model"]
    if missing := sorted(set(outputs) - set(names)):
        raise ValueError(f"not cached: {', '.join(missing)}")
    tensors = [name for name in names if isinstance(outputs[name], Tensor)]
    error = max(agree(kept[f"model.{name}"].output, outputs[name], name) for name in tensors)
    return paired(call, lambda: model(ids), scale, tensors=len(names), error=error)


def transformer_lens(scale: Scale) -> Kept:
    """`run_with_cache` against the same bridge's own forward."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, ids = _subject(scale)
    wrapped = shadow(model)
    bridge = build_bridge_from_module(wrapped, type(wrapped).__name__, hf_config=wrapped.config, dtype=model.dtype)
    logits, cached = bridge.run_with_cache(ids)
    error = agree(logits, model(ids).logits, "logits")
    return paired(lambda: bridge.run_with_cache(ids), lambda: bridge(ids), scale, tensors=len(cached), error=error)


def _torchlens(scale: Scale, operation: Operation, look: Callable[[Any], tuple[Tensor, int]]) -> Kept:
    """An operation of torchlens; it wraps PyTorch's functions for all that runs in the process, the baseline too.

    Args:
        operation: what is timed.
        look: at what it gives: the logits, and how much was recorded.
    """
    from torchlens.backends.torch.wrappers import unwrap_torch

    model, ids = _subject(scale)
    wanted, traced = model(ids).logits, shadow(model)
    try:
        with warnings.catch_warnings():  # its remarks on the graph that it sees
            warnings.filterwarnings("ignore", message="TorchLens observed")
            logits, records = look(operation(traced, ids))
            error = agree(logits, wanted, "logits")
            del logits
            return paired(lambda: operation(traced, ids), lambda: model(ids), scale, records=records, error=error)
    finally:
        unwrap_torch()


def fastlog(scale: Scale) -> Kept:
    """`fastlog.record` at the boundaries of modules."""

    def record(model: Any, ids: Tensor) -> Any:
        import torchlens

        return torchlens.fastlog.record(model, ids, default_op=False, default_module=True, return_output=True)

    return _torchlens(scale, record, lambda found: (found[0].logits, len(found[1])))


def trace(scale: Scale) -> Kept:
    """`torchlens.trace`: every operation."""

    def full(model: Any, ids: Tensor) -> Any:
        import torchlens

        return torchlens.trace(model, ids)

    def look(traced: Any) -> tuple[Tensor, int]:
        vocabulary = gpt2(scale).config.vocab_size
        outputs = (traced[label].out for label in traced.output_layers)
        return next(output for output in outputs if output.shape[-1] == vocabulary), len(traced.op_labels)

    return _torchlens(scale, full, look)


def _apart(raw_ms: float, figure: float, also: str = "") -> Why:
    """Split a ratio into how long the forward takes and how long what is added to it does, here and there."""

    def why(seen: Found, rows: Mapping[str, Found]) -> str:
        if seen.estimate is None or seen.bare_s is None:
            return "not established"
        bare_ms, there_ms = 1000 * seen.bare_s, raw_ms * (figure - 1)
        start = f"A forward takes {milliseconds(bare_ms)} here and {milliseconds(raw_ms)} there. "
        if seen.estimate.covers(1.0):
            return f"{start}What is added cannot be told from nothing here. {also}".strip()
        added = f"{milliseconds(seen.added_ms)} are added here, {milliseconds(there_ms)} there"
        if there_ms <= 0 or seen.added_ms <= 0:
            return f"{start}{added}. {also}".strip()
        forward, extra = bare_ms / raw_ms, seen.added_ms / there_ms
        rest = "so the ratio is larger" if extra > forward else "so the ratio is smaller"
        return (
            f"{start}{added}: the forward is {short(forward)} times as long, what is added {short(extra)} times, "
            f"{rest}. {also}"
        ).strip()

    return why


def _filled(seen: Found, rows: Mapping[str, Found]) -> str:
    return (
        "The published program skips this cell in every case: `run_nnsight` asks for a model that has `trace` already, "
        "and refuses that too. Wrapped by `NNsight` and cached by `tracer.cache()`, it runs; "
        f"{seen.facts.get('tensors', 0)} modules, equal to the hooks'."
    )


_WRAPPED = (
    "The baseline here runs under TorchLens' wrappers too; the table has such a forward at 1.03 to 1.09 of a raw one."
)
_BRIDGE = (
    "Different programs: there `HookedTransformer` of 3.2.1, which 4.3.0 no longer has; here `TransformerBridge` over "
    "the Hugging Face modules, against its own forward."
)

CLAIMS = (
    Claim(
        "control.again", Source("control", "this study", "", ""), "the same forward under two names", 1.0,
        _WORKLOAD, half=0.0, group="peers", measure=again,
        why=lambda seen, rows: "A control: an interval that does not cover 1 says that the machine was not quiet.",
    ),
    Claim(
        "torchlens.hooks", TABLE, "hooks on every module (`peer_manual_hooks`)", 1.06, _WORKLOAD,
        group="peers", measure=hooks, why=_apart(_RAW_MS, 1.06),
    ),
    Claim(
        "torchlens.fastlog", TABLE, "`fastlog_module`", 4.24, _WORKLOAD, group="torchlens", measure=fastlog,
        why=_apart(_RAW_MS, 4.24, _WRAPPED),
    ),
    Claim(
        "torchlens.trace", TABLE, "full trace (`tl_trace`)", 14.77, _WORKLOAD, group="torchlens", measure=trace,
        why=_apart(_RAW_MS, 14.77, _WRAPPED),
    ),
    Claim(
        "torchlens.transformer_lens", TABLE, "TransformerLens `run_with_cache` to its own forward", 0.99, _WORKLOAD,
        group="peers", measure=transformer_lens, why=_apart(_RAW_HOOKED_MS, 0.99, _BRIDGE),
    ),
    Claim(
        "torchlens.nnsight", TABLE, "nnsight, every module (`peer_nnsight`): skipped", None, _WORKLOAD,
        group="peers", measure=nnsight, why=_filled,
    ),
    Claim(
        "torchlens.baukit", TABLE, "baukit `TraceDict` (`peer_baukit`): skipped", None,
        missing="PyPI has no distribution named baukit, as the table's authors found too",
    ),
    Claim(
        "torchlens.cuda", TABLE, "the same on CUDA: full trace 165×, fastlog_all 40×, run_with_cache 1.46×", None,
        missing="a GPU",
    ),
)  # fmt: skip
"""The rows of this source."""
