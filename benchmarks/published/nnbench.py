"""nnbench's cost of attribution patching, in forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .claim import Claim, Found, Kept, Scale, Source, short
from .subjects import agree, gpt2, paired, shadow, tokens

FINDINGS = Source(
    "nnbench, findings",
    "github.com/ndif-team/nnbench, docs/findings.md; isb/methodologies/attribution_patching.py, isb/backends/hf.py",
    "1f68076, 4841ae2, 309e7e9; GPT-2 on CUDA, through nnsight",
    "2026-06",
)
_ANSWERS = (1, 2)


def _subject(scale: Scale) -> tuple[Any, Tensor, Tensor]:
    model = gpt2(scale, "eager")
    return model, tokens(model, 1, 8, scale.seed), tokens(model, 1, 8, scale.seed + 1)


def _metric(transformer: Any, head: Any, last: Any) -> Any:
    """Difference of two logits at the last position, norm and unembedding of the last block's output."""
    logits = F.linear(transformer.ln_f(last), head.weight)[:, -1, :]
    return logits[:, _ANSWERS[0]] - logits[:, _ANSWERS[1]]


def _nnsight(module: Any, clean: Tensor, corrupt: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Attribution of every block as its `be.attribute` has it, and the forward that reads the metric alone."""
    from nnsight import NNsight

    wrapped, layers = NNsight(module), module.config.n_layer

    def attribute() -> Tensor:
        there: list[Any] = [None] * layers
        with wrapped.trace(clean):
            for layer in range(layers):
                there[layer] = wrapped.transformer.h[layer].output.save()
        here: list[Any] = [None] * layers
        slopes: list[Any] = [None] * layers
        with wrapped.trace(corrupt):
            outputs = [block.output for block in wrapped.transformer.h]
            for layer in range(layers):
                outputs[layer].requires_grad_(True)
                here[layer] = outputs[layer].save()
            metric = _metric(wrapped.transformer, wrapped.lm_head, outputs[-1])
            with metric.sum().backward():
                for layer in range(layers - 1, -1, -1):
                    slopes[layer] = outputs[layer].grad.save()
        return torch.stack([((a - b) * slope).sum() for a, b, slope in zip(there, here, slopes, strict=True)]).detach()

    def forward() -> Tensor:
        with wrapped.trace(corrupt):
            metric = _metric(wrapped.transformer, wrapped.lm_head, wrapped.transformer.h[-1].output).save()
        found: Tensor = metric
        return found

    return attribute, forward


def _plainly(model: Any, clean: Tensor, corrupt: Tensor, *, weights: bool = False) -> Callable[[], Tensor]:
    """The same by hooks and PyTorch's own gradient: of the blocks' outputs alone, or of every weight too."""

    def outputs(ids: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []

        def hook(_module: Any, _given: Any, output: Tensor) -> None:
            kept.append(output)

        handles = [block.register_forward_hook(hook) for block in model.transformer.h]
        try:
            model(ids)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def attribute() -> Tensor:
        there, here = outputs(clean), outputs(corrupt)
        metric = _metric(model.transformer, model.lm_head, here[-1]).sum()
        if weights:
            for each in here:
                each.retain_grad()
            metric.backward()
            slopes = [each.grad for each in here if each.grad is not None]
        else:
            slopes = list(torch.autograd.grad(metric, here))
        return torch.stack([((a - b) * slope).sum() for a, b, slope in zip(there, here, slopes, strict=True)]).detach()

    return attribute


def through_nnsight(scale: Scale) -> Kept:
    """Their program."""
    model, clean, corrupt = _subject(scale)
    module = shadow(model)
    attribute, forward = _nnsight(module, clean, corrupt)
    error = agree(attribute(), _plainly(model, clean, corrupt)(), "attributions", 1e-3)
    try:
        return paired(attribute, forward, scale, error=error)
    finally:
        module.zero_grad(set_to_none=True)  # the weights are shared, and backward fills their gradients


def plainly(scale: Scale) -> Kept:
    """The same computation without a library, to a plain forward."""
    model, clean, corrupt = _subject(scale)

    def forward() -> Any:
        return model(corrupt).logits

    return paired(_plainly(model, clean, corrupt), forward, scale)


def with_weights(scale: Scale) -> Kept:
    """The same with a backward that fills the gradient of every weight."""
    model, clean, corrupt = _subject(scale)
    attribute = _plainly(model, clean, corrupt, weights=True)
    try:
        error = agree(attribute(), _plainly(model, clean, corrupt)(), "attributions", 1e-3)
        return paired(attribute, lambda: model(corrupt).logits, scale, error=error)
    finally:
        model.zero_grad(set_to_none=True)


def _parts(seen: Found, rows: Mapping[str, Found]) -> str:
    plain, full = rows.get("nnbench.plain"), rows.get("nnbench.weights")
    if plain is None or plain.estimate is None or full is None or full.estimate is None:
        return "not established"
    return (
        "Two forwards and a backward, which through nnsight fills the gradient of every weight. By hooks that takes "
        f"{short(full.estimate.value)} plain forwards here, with gradients of the blocks' outputs alone "
        f"{short(plain.estimate.value)} (next rows). There the forward ran on a GPU."
    )


def _plain(seen: Found, rows: Mapping[str, Found]) -> str:
    return "What the method itself costs here: no library, no gradient of weights."


def _full(seen: Found, rows: Mapping[str, Found]) -> str:
    return "No library either, but `backward`, which computes and adds up a gradient that nobody asked for."


_WORKLOAD = "GPT-2 small (random weights), eager, two prompts of 8 tokens, CPU"

CLAIMS = (
    Claim("nnbench.attribution", FINDINGS, "attribution patching takes about 3.4 forwards", 3.4,
          _WORKLOAD + "; to a trace that reads the metric", half=0.05, group="nnsight", measure=through_nnsight,
          why=_parts),
    Claim("nnbench.plain", FINDINGS, "the same without a library: not published", None,
          _WORKLOAD + "; by hooks, to a plain forward", group="nnsight", measure=plainly, why=_plain),
    Claim("nnbench.weights", FINDINGS, "the same, gradients of weights too: not published", None,
          _WORKLOAD + "; by hooks and `backward`, to a plain forward", group="nnsight", measure=with_weights,
          why=_full),
    Claim("nnbench.vllm", FINDINGS, "logit lens of a llama on vLLM: right token .13, no error", None,
          missing="vLLM, and the GPU that it needs"),
)  # fmt: skip
"""The rows of this source."""
