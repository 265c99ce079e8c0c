"""TransformerLens' floors of floating-point noise, and its rule that noise collapses in float64 and bugs do not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crosslens.tasks import load_model

from .claim import Claim, Found, Kept, Scale, Source, Why, short
from .subjects import gpt2, shadow, tokens

GUIDE = Source(
    "TransformerLens, Debugging Numerical Divergence",
    "github.com/TransformerLensOrg/TransformerLens, docs/source/content/debugging_numerical_divergence.md, section 6",
    "10d44e9",
    "2026",
)
_PROMPTS = 4
_LENGTH = 12
_BUG = 1e-5  # relative size of the planted error


@cache
def _models(scale: Scale) -> dict[str, Any]:
    """A real llama and a random GPT-2, float32."""
    real, _ = load_model("tiny-llama" if scale.tiny else "smollm2-135m", dtype=torch.float32)
    return {"llama": real, "gpt2": gpt2(scale)}


def _bridge(model: Any) -> Any:
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    wrapped = shadow(model)
    return build_bridge_from_module(wrapped, type(wrapped).__name__, hf_config=wrapped.config, dtype=model.dtype)


def differences(model: Any, bridge: Any, scale: Scale) -> list[float]:
    """Largest difference of logits between a Hugging Face model and a bridge, for each of a few prompts."""
    found = []
    with torch.no_grad():
        for prompt in range(_PROMPTS):
            ids = tokens(model, 1, _LENGTH, scale.seed + prompt)
            got, wanted = bridge(ids), model(ids).logits
            found.append(float((got.double() - wanted.double()).abs().max()))
    return found


def _as(model: Any, attention: str, dtype: torch.dtype) -> Any:
    """A copy of a model in a dtype, with an implementation of attention."""
    turned = copy.deepcopy(model).to(dtype)
    turned.set_attn_implementation(attention)
    return turned


def _floor(scale: Scale, attention: str, dtype: torch.dtype) -> Kept:
    """Differences of both models, and how far apart numbers of the dtype lie at the size of their largest logit."""
    values, facts = [], dict[str, Any]()
    for name, float32 in _models(scale).items():
        model = _as(float32, attention, dtype)
        found = differences(model, _bridge(model), scale)
        with torch.no_grad():
            largest = float(model(tokens(model, 1, _LENGTH, scale.seed)).logits.abs().max())
        spacing = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(largest))
        facts[name] = {"worst": max(found), "logits": largest, "spacing": spacing}
        values += found
    return {"values": values, "facts": facts}


def eager32(scale: Scale) -> Kept:
    """float32, eager attention."""
    return _floor(scale, "eager", torch.float32)


def sdpa32(scale: Scale) -> Kept:
    """float32, the model with sdpa."""
    return _floor(scale, "sdpa", torch.float32)


def eager16(scale: Scale) -> Kept:
    """bfloat16, eager attention."""
    return _floor(scale, "eager", torch.bfloat16)


def sdpa16(scale: Scale) -> Kept:
    """bfloat16, the model with sdpa."""
    return _floor(scale, "sdpa", torch.bfloat16)


def _orders(scale: Scale, *, attention: str, names: tuple[str, ...], bug: bool = False) -> Kept:
    """Orders of magnitude by which each difference falls from float32 to float64; one that is zero has none."""
    values, exact, facts = [], 0, dict[str, Any]()
    for name in names:
        found = []
        for dtype in (torch.float32, torch.float64):
            model = _as(_models(scale)[name], attention, dtype)
            bridge = _bridge(_faulty(model) if bug else model)
            found.append(differences(model, bridge, scale))
        facts[name] = {"float32": max(found[0]), "float64": max(found[1])}
        if attention == "sdpa" and not bug:
            with float64_softmax():
                facts[name]["softmax"] = max(differences(model, bridge, scale))
        pairs = list(zip(*found, strict=True))
        exact += sum(0 in pair for pair in pairs)
        values += [float(np.log10(single / double)) for single, double in pairs if 0 not in (single, double)]
    if not values:
        raise ValueError("every difference was exactly zero")
    return {"values": values, "facts": {**facts, "exact": exact}}


def _faulty(model: Any) -> Any:
    """A copy whose last norm has weights larger by a hundred-thousandth."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        _last_norm(copied).mul_(1 + _BUG)
    return copied


@contextmanager
def float64_softmax() -> Iterator[None]:
    """A softmax of float64 numbers is computed in float64 inside, also where its caller asks for float32."""
    plain = F.softmax

    def softmax(given: Tensor, dim: int | None = None, _level: int = 3, dtype: torch.dtype | None = None) -> Tensor:
        return plain(given, dim=dim, dtype=torch.float64 if given.dtype == torch.float64 else dtype)

    F.softmax = softmax  # type: ignore[assignment]
    try:
        yield
    finally:
        F.softmax = plain


def _last_norm(model: Any) -> Tensor:
    """The weight of the norm before the unembedding."""
    found = [value for name, value in model.named_parameters() if name.endswith(("norm.weight", "ln_f.weight"))]
    weight: Tensor = found[-1]
    return weight


def _fall(name: str) -> Why:
    def why(seen: Found, rows: Mapping[str, Found]) -> str:
        facts = seen.facts.get(name)
        if facts is None:
            return "not established"
        said = f"Largest difference: {short(facts['float32'])} in float32, {short(facts['float64'])} in float64."
        inside = facts.get("softmax")
        if inside is None or facts["float64"] == 0:
            return said
        if inside < facts["float64"] / 100:
            return (
                f"{said} The softmax of eager attention, the bridge's, is in float32 whatever the model's dtype: "
                f"computed in float64, the difference is {short(inside)}. So the rule calls this noise a bug."
            )
        return f"{said} With every softmax in float64 it is {short(inside)}."

    return why


def _models_said(seen: Found, rows: Mapping[str, Found]) -> str:
    parts = []
    for name, said in (("llama", "the llama"), ("gpt2", "the GPT-2")):
        facts = seen.facts.get(name)
        if facts is None:
            return "not established"
        worst = "bitwise equal" if facts["worst"] == 0 else f"{short(facts['worst'])} at most"
        size = f"logits up to {short(facts['logits'])}, where numbers are {short(facts['spacing'])} apart"
        parts.append(f"{said}: {worst}, {size}")
    return f"{'; '.join(parts)}. "


def _floors(seen: Found, rows: Mapping[str, Found]) -> str:
    said = _models_said(seen, rows)
    return said + "The bound is absolute, whatever the size of the logits." if seen.estimate else said


def _kernel(seen: Found, rows: Mapping[str, Found]) -> str:
    """A bridge computes attention by itself, so that with sdpa two kernels are compared."""
    eager, said = rows.get("noise.bfloat16"), _models_said(seen, rows)
    if seen.worst is None or eager is None or eager.worst is None:
        return "not established"
    return (
        f"{said}The bridge computes attention its own way whatever the model has, so two kernels are compared; against "
        f"eager the largest is {short(eager.worst)} (row above). The guide gives no floor for this pair."
    )


_NAMES = {"llama": "SmolLM2-135M (real)", "gpt2": "GPT-2 small (random weights)"}
_EACH = f"{_PROMPTS} prompts of {_LENGTH} tokens"


def _claim(
    name: str, said: str, figure: float | None, workload: str, measure: Callable[[Scale], Kept], why: Why
) -> Claim:
    return Claim(
        f"noise.{name}", GUIDE, said, figure, f"logits of {' and '.join(_NAMES.values())}, {workload}, {_EACH}",
        unit="", rule="below", half=0.0, group="computed", measure=measure, why=why, once=True,
    )  # fmt: skip


def _orders_claim(name: str, said: str, figure: float, workload: str, model: str, **how: Any) -> Claim:
    measure = partial(_orders, attention=how.pop("attention"), names=(model,), **how)
    return Claim(
        f"noise.{name}", GUIDE, said, figure, f"logits of {_NAMES[model]}, float32 and float64, {workload}",
        unit="orders", half=0.5, group="computed", measure=measure, why=_fall(model), once=True,
    )  # fmt: skip


_NOISE = "in float64 noise drops by about 8 orders of magnitude"

CLAIMS = (
    _claim("eager", "float32, eager: difference from Hugging Face < 5e-5", 5e-5, "float32, eager", eager32, _floors),
    _claim("sdpa", "float32, sdpa: < 5e-4", 5e-4, "float32, sdpa", sdpa32, _floors),
    _claim("bfloat16", "bfloat16, eager: < 1e-2", 1e-2, "bfloat16, eager", eager16, _floors),
    _claim("bfloat16_sdpa", "bfloat16, sdpa: no floor given", None, "bfloat16, sdpa", sdpa16, _kernel),
    _orders_claim("collapse", _NOISE, 8.0, "eager", "gpt2", attention="eager"),
    _orders_claim("collapse_sdpa", f"{_NOISE}: sdpa", 8.0, "sdpa", "gpt2", attention="sdpa"),
    _orders_claim("collapse_llama", f"{_NOISE}: a llama, sdpa", 8.0, "sdpa", "llama", attention="sdpa"),
    _orders_claim(
        "bug", "in float64 a bug stays the same magnitude", 0.0,
        "eager, the bridge's last norm too large by a hundred-thousandth", "llama", attention="eager", bug=True,
    ),
)  # fmt: skip
"""The rows of this source."""
