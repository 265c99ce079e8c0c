"""captum and inseq: that they do the work, that they agree, and what only they do. The kit knows what is right."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crosslens.adapters import InputError, UnsupportedError
from crosslens.adapters.attribution import METHODS, Attribution, AttributionInspector, Rows, Target
from crosslens.adapters.conformance import conformance_checks
from crosslens.adapters.conformance.models import tiny_model

pytest.importorskip("captum")
pytest.importorskip("inseq")

import captum.attr
from inseq.attr.feat import FeatureAttribution

from crosslens.adapters.captum import CaptumInspector
from crosslens.adapters.inseq import InseqInspector

FAMILIES = ("llama", "gpt2", "gpt_neox")
BOTH = (CaptumInspector, InseqInspector)
IDS = torch.randint(3, 300, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [0] * 2 + [1] * 5, [0] * 4 + [1] * 3])
PADDED = {"input_ids": IDS, "attention_mask": MASK}
CONTRAST = Target([5, 6, 7], minus=9)
LAYER = {"layer_gradient_x_activation": {"site": "blocks.1.mlp.post"}}


def opened(backend: type[AttributionInspector], family: str = "gpt2", **how: Any) -> AttributionInspector:
    return backend(*tiny_model(family, **{"dtype": torch.float64, "attn_implementation": "eager", **how}))


def attribute(lens: AttributionInspector, method: str, target: Any = CONTRAST, **options: Any) -> Attribution:
    return lens.attribute(PADDED, target, method=method, **LAYER.get(method, {}), **options)


def methods_of(*backends: type[AttributionInspector]) -> Iterator[str]:
    return (method for method in METHODS if not any(method in backend.lacking for backend in backends))


# ---- the library does the work


def test_every_method_is_captums_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(name: str) -> None:
        kind = getattr(captum.attr, name)
        original = kind.attribute

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(type(self).__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "attribute", counted)

    wanted = {
        "saliency": "Saliency",
        "input_x_gradient": "InputXGradient",
        "integrated_gradients": "IntegratedGradients",
        "occlusion": "FeatureAblation",
        "layer_gradient_x_activation": "LayerGradientXActivation",
        "attention": "LayerActivation",
    }
    for name in wanted.values():
        count(name)
    assert list(wanted) == list(methods_of(CaptumInspector))
    with opened(CaptumInspector) as lens:
        for method, name in wanted.items():
            calls.clear()
            attribute(lens, method)
            assert calls == [name] * 3, "once for each length of rows"


def test_every_method_is_inseqs_own_and_the_callers_modules_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int]] = []
    original = FeatureAttribution.filtered_attribute_step

    def counted(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append((self.method_name, batch.input_ids.shape[1]))
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(FeatureAttribution, "filtered_attribute_step", counted)
    with opened(InseqInspector) as lens:
        attribute(lens, "saliency")
        for name, module in lens.model.named_modules():  # hooks of after the first use are not on the shadow
            if name != "transformer.wte":  # embeds the tokens
                module.register_forward_pre_hook(lambda *_: pytest.fail("the caller's own modules ran"))
        for method in METHODS:
            steps.clear()
            attribute(lens, method)
            assert steps == [(method, 3), (method, 5), (method, 7)], "once for each length of rows, without padding"


# ---- they agree


@pytest.mark.parametrize("family", FAMILIES)
def test_they_agree(family: str) -> None:
    targets = (Target(5), CONTRAST, Target(5, of="probability", position=1), Target(4, minus=8, of="probability"))
    with opened(CaptumInspector, family) as one, opened(InseqInspector, family) as two:
        for method in methods_of(*BOTH):
            for target in targets:
                a, b = attribute(one, method, target), attribute(two, method, target)
                assert a.scores.abs().max() > 0
                assert (a.scores - b.scores).abs().max() <= 1e-6 * a.scores.abs().sum(1).max(), (method, target)
                assert (a.units is None) == (b.units is None)
                if a.units is not None and b.units is not None:
                    assert (a.units - b.units).abs().max() <= 1e-6 * a.units.abs().max(), (method, target)
                assert a.baseline == b.baseline
                if a.delta is not None and b.delta is not None:
                    assert torch.allclose(a.delta, b.delta, atol=1e-6), (method, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BOTH)
def test_results_have_the_models_dtype(backend: type[AttributionInspector], dtype: torch.dtype) -> None:
    with opened(backend, "llama", dtype=dtype, attn_implementation="sdpa") as lens:
        for method in methods_of(backend):
            found = attribute(lens, method)
            assert found.scores.dtype == dtype
            assert bool(found.scores.isfinite().all())
            assert not found.scores[MASK == 0].any()


@pytest.mark.parametrize("backend", BOTH)
def test_texts_are_the_same_as_their_ids(backend: type[AttributionInspector]) -> None:
    texts = ["the cat sat", "a dog", "no"]
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    tokenizer.padding_side = "right"
    with backend(model, tokenizer) as lens:
        both = lens.attribute(texts, CONTRAST, method="input_x_gradient")
        for row, text in enumerate(texts):
            alone = backend(model).attribute(
                torch.tensor([tokenizer(text)["input_ids"]]), Target(5 + row, minus=9), method="input_x_gradient"
            )
            length = alone.scores.shape[1]
            assert torch.allclose(both.scores[row, :length], alone.scores[0], rtol=1e-6, atol=1e-9)
            assert not both.scores[row, length:].any()
    assert tokenizer.padding_side == "right"


def test_occlusion_keeps_its_sign() -> None:
    with opened(InseqInspector) as lens:
        scores = attribute(lens, "occlusion").scores
    assert bool((scores < 0).any() and (scores > 0).any())


def test_position_ids_of_the_callers_own() -> None:
    model, _ = tiny_model("gpt2", dtype=torch.float64, attn_implementation="eager")
    positions = torch.arange(3, 10).expand(3, -1)
    given = {"input_ids": IDS, "position_ids": positions}
    with CaptumInspector(model) as lens:
        got = lens.attribute(given, 5, method="input_x_gradient").units
    embeds = model.transformer.wte(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits[:, -1, 5]
    (gradient,) = torch.autograd.grad(logits.sum(), embeds)
    assert got is not None
    assert torch.allclose(got, gradient * embeds, atol=1e-9)
    with InseqInspector(model) as lens, pytest.raises(UnsupportedError, match="position_ids"):
        lens.attribute(given, 5, method="input_x_gradient")


@pytest.mark.parametrize("backend", BOTH)
def test_dropout_acts_as_in_the_callers_model_and_the_random_state_stays(backend: type[AttributionInspector]) -> None:
    with opened(backend) as lens:
        still = attribute(lens, "input_x_gradient").scores
        lens.model.train()
        state = torch.get_rng_state()
        one, two = (attribute(lens, "input_x_gradient").scores for _ in range(2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(one, two)
        assert not torch.allclose(one, still), "gpt2 drops a tenth"
        lens.model.eval()
        assert torch.allclose(attribute(lens, "input_x_gradient").scores, still)


# ---- what is refused


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("site", "why"),
    [
        ("blocks.1.attn.pattern", "inside an attention module"),
        ("blocks.1.resid_mid", "residual stream"),
        ("blocks.1.resid_pre", "resid_post of the block before"),
        ("blocks.1.attn.out", "take attn.z"),
    ],
)
def test_layers_that_hooks_on_modules_get_wrong(backend: type[AttributionInspector], site: str, why: str) -> None:
    with opened(backend) as lens, pytest.raises(UnsupportedError, match=why):
        lens.attribute(IDS, 5, method="layer_gradient_x_activation", site=site)


@pytest.mark.parametrize("backend", BOTH)
def test_models_that_it_is_not_for(backend: type[AttributionInspector]) -> None:
    with backend(nn.Linear(2, 2)) as lens, pytest.raises(InputError, match="known family"):
        lens.attribute(IDS, 5, method="saliency")
    with opened(backend) as lens:
        lens.model.transformer.h[0].attn.is_causal = False
        with pytest.raises(UnsupportedError, match="causal"):
            lens.attribute(IDS, 5, method="saliency")


def test_a_pad_baseline_needs_a_pad_token() -> None:
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64)
    with CaptumInspector(model, tokenizer) as lens:
        assert attribute(lens, "occlusion", baseline="pad").baseline == "embedding of the pad token, 0"
    model.config.pad_token_id = None
    with CaptumInspector(model) as lens, pytest.raises(InputError, match="token id"):
        attribute(lens, "occlusion", baseline="pad")


@pytest.mark.parametrize("backend", BOTH)
def test_everything_else_is_refused_with_the_reason(backend: type[AttributionInspector]) -> None:
    with opened(backend) as lens:
        for call in (
            lambda: lens.run(IDS, capture=["embed"]),
            lambda: lens.run(IDS),
            lambda: lens.gradients(IDS, "embed", lambda logits: logits[:, -1, 5]),
            lambda: lens.generate(IDS, max_new_tokens=1),
        ):
            with pytest.raises(UnsupportedError, match=r"attribute"):
                call()


def test_a_failed_value_zeroing_leaves_neither_trace_function_nor_hooks() -> None:
    with opened(InseqInspector) as lens:
        attribute(lens, "saliency")
        want = attribute(lens, "value_zeroing").scores
        shadow = lens._wrapped.model  # type: ignore[attr-defined]
        handle = shadow.transformer.h[1].attn.c_attn.register_forward_hook(lambda *_: 1 / 0)  # while it is traced
        before = sys.gettrace()
        with pytest.raises(ZeroDivisionError):
            attribute(lens, "value_zeroing")
        assert sys.gettrace() is before
        handle.remove()
        assert torch.equal(attribute(lens, "value_zeroing").scores, want)
        assert lens._wrapped.model is not shadow, "the shadow with inseq's hooks on it is thrown away"  # type: ignore[attr-defined]


def test_importing_inseq_leaves_other_peoples_loggers_alone() -> None:
    code = (
        f"import logging; logging.getLogger('urllib3').setLevel({logging.DEBUG}); import crosslens.adapters.inseq; "
        f"assert logging.getLogger('urllib3').level == {logging.DEBUG}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the kit notices


class _Unsigned(CaptumInspector):
    """Loses the sign of occlusion."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        units, delta = super()._attribute(method, rows)
        return (units.abs() if method == "occlusion" else units), delta


class _FewSteps(CaptumInspector):
    """Takes other steps than asked for."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return super()._attribute(method, replace(rows, steps=rows.steps + 1))


class _NoContrast(CaptumInspector):
    """Forgets the token that is subtracted."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return super()._attribute(method, replace(rows, minus=None))


class _OtherBaseline(CaptumInspector):
    """Takes zeros for every baseline."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        base = None if rows.baseline is None else torch.zeros_like(rows.baseline)
        return super()._attribute(method, replace(rows, baseline=base))


class _NoDelta(CaptumInspector):
    """Says that the scores always add up."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        units, delta = super()._attribute(method, rows)
        return units, None if delta is None else torch.zeros_like(delta)


class _FirstLayer(CaptumInspector):
    """Shows the attention of the first layer only."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        units, delta = super()._attribute(method, rows)
        return (units[:, :, :1].expand_as(units) if method == "attention" else units), delta


class _ClearsGradients(CaptumInspector):
    """Clears the gradients of the caller's parameters."""

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        self.model.zero_grad()
        return super()._attribute(method, rows)


class _RunsFirst(CaptumInspector):
    """Runs the model before it looks at what was asked."""

    def attribute(self, inputs: Any, target: Any, **options: Any) -> Attribution:
        self._check_open()
        self.model(inputs["input_ids"] if isinstance(inputs, dict) else inputs)
        return super().attribute(inputs, target, **options)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_Unsigned, "right/attribute/occlusion/logit/gpt2"),
        (_FewSteps, "right/attribute/integrated_gradients/logit/gpt2"),
        (_NoContrast, "right/attribute/saliency/contrast/gpt2"),
        (_NoContrast, "right/attribute/layer_gradient_x_activation/embed/gpt2"),
        (_OtherBaseline, "right/attribute/occlusion/logit/gpt2"),
        (_OtherBaseline, "right/attribute/complete/gpt2"),
        (_NoDelta, "right/attribute/integrated_gradients/logit/gpt2"),
        (_FirstLayer, "right/attribute/attention/gpt2"),
        (_ClearsGradients, "no-trace/attribute/after-success/gpt2"),
        (_RunsFirst, "refuses/attribute/mistakes/gpt2"),
    ],
)
def test_a_broken_backend_is_caught(broken: type[CaptumInspector], check: str) -> None:
    found = [c for c in conformance_checks(broken, ("gpt2",)) if c.id.startswith(check)]
    assert found
    assert all(c.run().status == "failed" for c in found)
