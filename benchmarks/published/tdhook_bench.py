"""TDHook's comparisons: caching a GPT-2, editing an MLP, integrated gradients, disk space; and how it measured.

Its program times whole processes to a hundredth of a second, one that runs the task and one that only prepares it,
takes the difference, makes a missing value of a negative one and averages the rest over three seeds; it holds the
first output of `gpt2_cache`, the logits, against each other and not what was cached. Here arms alternate in one
process, nothing is dropped, and everything that two arms both give is compared. `whole_process.py` does it their way,
to see what that does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .claim import Claim, Found, Kept, Scale, Source, milliseconds, short
from .disk import megabytes
from .intervene import TIMES, mlp, nnsight_intervenes, tdhook_intervenes
from .subjects import agree, gpt2, paired, shadow, tokens
from .whole_process import by_difference

PAPER = Source(
    "Poupart, TDHook: A Lightweight Framework for Interpretability", "arXiv:2509.25475v1, abstract", "v1", "2025-09-29"
)
BENCH = Source(
    "TDHook, scripts/bench",
    "github.com/Xmaster6y/tdhook, scripts/bench/{get_stats,utils}.py and tasks/",
    "46529dc, 2e33f1b, 3e87cf4, c6a4954, 3765fb3",
    "2025",
)
TARGETS = (4, 7)  # the outputs that its integrated gradients explain


def _cached(scale: Scale) -> tuple[Any, Tensor]:
    model = gpt2(scale)
    return model, tokens(model, 2 if scale.tiny else 10, 4, scale.seed)  # "Hello, world!" is four tokens of GPT-2's


def _first(**given: Any) -> Any:
    return given["output"][0] if isinstance(given["output"], tuple) else given["output"]


def _tdhook_cache(model: Any, ids: Tensor) -> Callable[[], Any]:
    """tdhook's `ActivationCaching` of every module but the transformer itself."""
    from tdhook.latent.activation_caching import ActivationCaching
    from tensordict import TensorDict

    method = ActivationCaching(key_pattern="^(?!transformer$).*", callback=_first, relative=True)
    module = shadow(model)

    def call() -> Any:
        with method.prepare(module, in_keys={"input_ids": "input_ids"}, out_keys=["output"]) as hooked:
            return hooked(TensorDict({"input_ids": ids}))

    return call


def cache_nnsight(scale: Scale) -> Kept:
    """nnsight's `tracer.cache()` to tdhook."""
    from nnsight import NNsight

    model, ids = _cached(scale)
    theirs, wrapped = _tdhook_cache(model, ids), NNsight(shadow(model))

    def call() -> Any:
        caches: list[Any] = []
        with wrapped.trace(ids) as tracer:
            caches.append(tracer.cache())
        return caches[0]

    one, other = theirs()["cache"], call()
    names = list(one.keys())
    error = max(agree(_first(output=other[f"model.{name}"].output), one[name], name) for name in names)
    return paired(call, theirs, scale, tensors=len(other.keys()), compared=len(names), error=error)


def cache_transformer_lens(scale: Scale) -> Kept:
    """TransformerLens' `run_with_cache` to tdhook."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    model, ids = _cached(scale)
    theirs, wrapped = _tdhook_cache(model, ids), shadow(model)
    bridge = build_bridge_from_module(wrapped, type(wrapped).__name__, hf_config=wrapped.config, dtype=model.dtype)
    one, (logits, other) = theirs(), bridge.run_with_cache(ids)
    error = agree(logits, one["output", "logits"], "logits")
    layers = range(model.config.n_layer)
    compared = {f"blocks.{n}.hook_resid_post": f"transformer.h.{n}" for n in layers}
    compared |= {f"blocks.{n}.hook_mlp_out": f"transformer.h.{n}.mlp" for n in layers}
    error = max(error, *(agree(other[name], one["cache"][path], name) for name, path in compared.items()))
    return paired(
        lambda: bridge.run_with_cache(ids), theirs, scale, tensors=len(other), compared=len(compared), error=error
    )


def intervene(scale: Scale) -> Kept:
    """nnsight to tdhook on `mlp_intervene`."""
    from nnsight import NNsight

    times = 2 if scale.tiny else TIMES
    model = mlp(10, 10, scale.seed)
    x, wrapped, module = torch.randn(10, 10), NNsight(shadow(model)), shadow(model)
    pairs = zip(nnsight_intervenes(wrapped, x, times), tdhook_intervenes(module, x, times), strict=True)
    error = max(agree(got, wanted, "a state") for got, wanted in pairs)
    return paired(
        lambda: nnsight_intervenes(wrapped, x, times), lambda: tdhook_intervenes(module, x, times), scale,
        compared=3, error=error,
    )  # fmt: skip


def _gradients(scale: Scale, passes: int) -> Kept:
    """captum to tdhook on integrated gradients of two outputs: summed in one pass, or a pass for each."""
    from captum.attr import IntegratedGradients as Captum
    from tdhook.attribution.integrated_gradients import IntegratedGradients
    from tensordict import TensorDict

    width, height, batch = (9, 3, 2) if scale.tiny else (100, 10, 1000)
    model = mlp(height, width, scale.seed)
    x = torch.randn(batch, width)
    zero = torch.zeros_like(x)
    method = IntegratedGradients(
        init_attr_targets=lambda outputs, _: outputs.apply(lambda output: output[..., TARGETS]),
        multiply_by_inputs=True, compute_convergence_delta=True,
    )  # fmt: skip
    each, both = Captum(model), Captum(lambda given: model(given)[:, TARGETS].sum(1))

    def tdhook() -> tuple[Tensor, Tensor]:
        with method.prepare(model) as hooked:
            given = TensorDict({"input": x, ("baseline", "input"): zero}, batch_size=len(x))
            out = hooked(given)
        return out["attr", "input"], out["convergence_delta"]

    def captum() -> tuple[Tensor, Tensor]:
        if passes == 1:
            found: tuple[Tensor, Tensor] = both.attribute(x, zero, return_convergence_delta=True)
            return found
        parts = [each.attribute(x, zero, target=target, return_convergence_delta=True) for target in TARGETS]
        return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]

    error = agree(captum()[0], tdhook()[0], "attributions", 1e-3)
    return paired(captum, tdhook, scale, passes=passes, error=error)


def gradients_apart(scale: Scale) -> Kept:
    """captum called once for each target, as `_captum_add.py` has it."""
    return _gradients(scale, 2)


def gradients_together(scale: Scale) -> Kept:
    """captum on the sum of the targets, as `_captum.py` has it."""
    return _gradients(scale, 1)


def disk(scale: Scale) -> Kept:
    """Megabytes of tdhook and all that it needs to those of TransformerLens."""
    ours, theirs, torch_alone = (megabytes(name) for name in ("tdhook", "transformer-lens", "torch"))
    return {
        "values": [ours / theirs],
        "facts": {
            "tdhook_mb": ours, "transformer_lens_mb": theirs, "torch_mb": torch_alone,
            "without_torch": (ours - torch_alone) / (theirs - torch_alone),
        },
    }  # fmt: skip


def _no_figure(seen: Found, rows: Mapping[str, Found]) -> str:
    return (
        f"The abstract gives no figure for this task. {seen.facts.get('tensors')} tensors are kept, by tdhook one for "
        f"each module that runs; {seen.facts.get('compared')} were compared and are equal."
    )


def _twice(seen: Found, rows: Mapping[str, Found]) -> str:
    one = rows.get("tdhook.gradients_together")
    if seen.estimate is None or one is None or one.estimate is None:
        return "not established"
    factor = seen.estimate.value / one.estimate.value
    return (
        "This arm calls captum once for each of two targets; a target that is their sum needs one call and gives the "
        f"same attributions (next row). The second call makes it {short(factor)} times as slow."
    )


def _once(seen: Found, rows: Mapping[str, Found]) -> str:
    if seen.estimate is None:
        return "not established"
    side = "cannot be told from tdhook" if seen.estimate.covers(1.0) else (
        "is slower than tdhook" if seen.estimate.value > 1 else "is faster than tdhook"
    )  # fmt: skip
    return f"For the same work, equal attributions in one pass, captum {side} here."


def _space(seen: Found, rows: Mapping[str, Found]) -> str:
    facts = seen.facts
    return (
        f"tdhook with all that it needs takes {short(facts['tdhook_mb'])} MB here, TransformerLens "
        f"{short(facts['transformer_lens_mb'])}; a CPU build of torch, {short(facts['torch_mb'])} of both, is counted "
        f"in as there. Without torch the ratio is {short(facts['without_torch'])}."
    )


def _difference(seen: Found, rows: Mapping[str, Found]) -> str:
    facts = seen.facts
    return (
        f"{facts.get('negative')} of {facts.get('runs')} differences were negative and {facts.get('zero')} were zero: "
        f"processes differ among themselves by {milliseconds(facts.get('spread_ms', 0.0))} (standard deviation), a "
        f"task takes {milliseconds(facts.get('inside_ms', 0.0))} inside. Dropping what is negative leaves a mean of "
        f"{milliseconds(facts.get('kept_ms', 0.0))}; keeping it, {milliseconds(facts.get('all_ms', 0.0))}."
    )


def _states(seen: Found, rows: Mapping[str, Found]) -> str:
    return "The abstract gives no figure for this task. All three outputs of the two are equal."


_CACHE = "GPT-2 small (random weights), 10 × 4 tokens, CPU, gradients on; `{}` to tdhook's `ActivationCaching`"
_MLP = "MLP of 10 layers, width 10, 10 rows, 10 edits (their programs' defaults), CPU"
_IG = "MLP of 10 layers, width 100, 1,000 rows, 50 steps, outputs 4 and 7, CPU: a setting of theirs"

CLAIMS = (
    Claim("tdhook.cache_nnsight", BENCH, "gpt2_cache: nnsight to tdhook", None, _CACHE.format("tracer.cache()"),
          group="tdhook", measure=cache_nnsight, why=_no_figure),
    Claim("tdhook.cache_transformer_lens", BENCH, "gpt2_cache: TransformerLens to tdhook", None,
          _CACHE.format("run_with_cache"), group="tdhook", measure=cache_transformer_lens,
          why=_no_figure),
    Claim("tdhook.intervene", BENCH, "mlp_intervene: nnsight to tdhook", None, _MLP, group="tdhook",
          measure=intervene, why=_states),
    Claim("tdhook.gradients", PAPER, "integrated gradients for several targets: up to 2 times as fast as captum", 2.0,
          _IG + "; two calls of captum (`_captum_add.py`)", rule="up to", half=0.5, group="tdhook",
          measure=gradients_apart, why=_twice),
    Claim("tdhook.gradients_together", PAPER, "the same claim, captum given the sum of the targets", 2.0,
          _IG + "; one call of captum (`_captum.py`)", rule="up to", half=0.5, group="tdhook",
          measure=gradients_together, why=_once),
    Claim("tdhook.disk", PAPER, "roughly half as much disk space as transformer_lens", 0.5,
          "files of both and of all that they require, as installed here", half=0.05, group="computed", measure=disk,
          why=_space, once=True),
    Claim("tdhook.method", BENCH, "what a task takes: whole processes, run − spawn, no negatives", 1.0,
          "their way of timing mlp_intervene, to the time inside the same processes", half=0.05, group="tdhook-method",
          measure=by_difference, why=_difference, once=True),
    Claim("tdhook.gpu", PAPER, "the same speed-up on a GPU", 2.0, missing="a GPU"),
)  # fmt: skip
"""The rows of this source."""
