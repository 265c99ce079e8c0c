"""Guarantees 1, 4, 6, 7 and 8 of attribution: each method against its definition, worked out with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosslens.adapters.attribution import METHODS, Attribution, AttributionInspector, Target, measure
from crosslens.adapters.capabilities import Support
from crosslens.adapters.edits import replace, zero
from crosslens.adapters.errors import ClosedError, CrosslensError, InputError, SiteError, UnsupportedError
from crosslens.adapters.hooks import HooksInspector
from crosslens.adapters.inspector import Inspector

from .kit import FAMILIES, Check, Context, Promise, Scene, expect
from .residue import differences, snapshot

LAYERS = 3
TARGETS = {
    "logit": Target(5),
    "probability": Target([5, 9, 11], of="probability", position=2),
    "contrast": Target(5, minus=torch.tensor([9, 9, 12]), position=-2),
    "contrast-of-probabilities": Target([7, 8, 9], minus=3, of="probability"),
}
SITES = ("embed", "blocks.1.attn.q", "blocks.1.attn.z", "blocks.1.mlp.post", "blocks.1.resid_post", "logits")
VALUE_ZEROING = 2e-4  # cosines near 1 in float32, those within 1e-5 of it taken as 1; then normalised


def checks(context: Context, families: Sequence[str] = FAMILIES) -> Iterator[Check]:
    """Each method x target x padding; then completeness, mistakes, residue and company."""
    for family in families:
        plain = Scene(family, torch.float64)
        for scene in (plain, *(Scene(family, torch.float64, side) for side in ("left", "right"))):
            padding = () if scene.padding == "none" else (f"padding.{scene.padding}",)
            promise: Promise = "right" if scene.padding == "none" else "batch-invariant"
            for method, what, body in _methods():
                if _lacks(context, method):
                    body = partial(_refused, method=method)
                yield Check(
                    f"{promise}/attribute/{what}/{scene.id}", promise, ("attribute", *padding),
                    partial(body, scene=scene), context,
                )  # fmt: skip
        for promise, what, needs, body in (
            ("right", "complete", (), _complete),
            ("right", "frozen-model", (), _frozen),
            ("owned", "result", (), _owned),
            ("refuses", "mistakes", (), _mistakes),
            ("refuses", "methods-it-lacks", (), _lacking),
            ("no-trace", "after-success", (), partial(_residue, fails=False)),
            ("no-trace", "after-exception-in-model", (), partial(_residue, fails=True)),
            ("not-alone", "beside-others", ("coexist",), _beside),
        ):
            yield Check(
                f"{promise}/attribute/{what}/{family}", promise, ("attribute", *needs),
                partial(body, scene=plain), context,
            )  # fmt: skip


def _methods() -> Iterator[tuple[str, str, Callable[..., None]]]:
    """(method, what is checked, the check)."""
    for name, target in TARGETS.items():
        for method in ("saliency", "input_x_gradient"):
            yield method, f"{method}/{name}", partial(_gradients, method=method, target=target)
        yield "integrated_gradients", f"integrated_gradients/{name}", partial(_integrated, target=target)
        yield "occlusion", f"occlusion/{name}", partial(_occlusion, target=target)
    for site in SITES:
        yield "layer_gradient_x_activation", f"layer_gradient_x_activation/{site}", partial(_layer, site=site)
    yield "attention", "attention", _attention
    yield "value_zeroing", "value_zeroing", _value_zeroing


# ---- what each method is


def _last(scene: Scene, target: Target) -> list[int]:
    """Column of the target's position in each row."""
    columns = [torch.arange(8)[own] for own in _real(scene)]
    return [int(row[target.position]) for row in columns]


def _real(scene: Scene) -> Tensor:
    return torch.ones(3, 8, dtype=torch.bool) if scene.mask is None else scene.mask.bool()


def _value(scene: Scene, target: Target, logits: Tensor) -> Tensor:
    token = torch.as_tensor(target.token).expand(3)
    minus = None if target.minus is None else torch.as_tensor(target.minus).expand(3)
    return measure(logits[torch.arange(3), _last(scene, target)], token, minus, target.of)


def _before(scene: Scene, target: Target) -> Tensor:
    """(3, 8) real tokens up to the target's position."""
    return _real(scene) & (torch.arange(8)[None] <= torch.tensor(_last(scene, target))[:, None])


def _gradient(scene: Scene, target: Target, site: str, embeds: Tensor | None = None) -> Tensor:
    edits = () if embeds is None else (replace("embed", embeds),)
    found = scene.oracle.gradients(scene.ids, [site], partial(_value, scene, target), scene.mask, edits)
    return found[site]


def _same(
    scene: Scene, target: Target, got: Attribution, units: Tensor | None, scores: Tensor, noise: float = 0
) -> None:
    """Both as defined at the tokens that can matter, and exactly 0 at all others."""
    here = _before(scene, target)
    pairs = [("scores", got.scores, scores)]
    if units is not None:
        assert got.units is not None, f"{got.method}: units are missing"
        pairs.append(("units", got.units, units))
    for name, a, b in pairs:
        assert a.dtype == scene.dtype and a.shape == b.shape, (
            f"{got.method}: {name} are {tuple(a.shape)} {a.dtype}, must be {tuple(b.shape)} {scene.dtype}"
        )
        assert not a[~here].any(), f"{got.method}: {name} at padding or after the target's position are not 0"
        error, most = (a - b)[here].abs().max().item(), b[here].abs().max().item()
        assert most > 0, f"vacuous: {name} are all 0"
        if name == "scores" and units is not None:  # rounding of a sum is relative to what was summed
            most = max(most, units[here].flatten(1).abs().sum(1).max().item())
        limit = max(scene.noise(), noise) * most
        assert error <= limit, f"{got.method}: {name} are off by {error:.3g} of {most:.3g}; noise is {limit:.1g}"


def _gradients(context: Context, scene: Scene, method: str, target: Target) -> None:
    got = context.lens(scene).attribute(scene.inputs, target, method=method)
    gradient = _gradient(scene, target, "embed")
    units = gradient.abs() if method == "saliency" else gradient * scene.truth.sites["embed"]
    _same(scene, target, got, units, units.sum(-1))
    assert got.delta is None and got.baseline is None, f"{method} has neither delta nor baseline"


def _integrated(context: Context, scene: Scene, target: Target, steps: int = 6) -> None:
    """The sum over the nodes of Gauss-Legendre quadrature, term by term; the steps are too few on purpose."""
    lens = context.lens(scene)
    embeds = scene.truth.sites["embed"]
    given = 0.3 * torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    for baseline, base in (
        ("zero", torch.zeros_like(embeds)),
        ("pad", _embeds(scene, 0)),
        (9, _embeds(scene, 9)),
        (given, given),
        (given[0, 0], given[0, 0].expand_as(embeds)),
    ):
        got = lens.attribute(scene.inputs, target, method="integrated_gradients", baseline=baseline, steps=steps)
        mean = torch.zeros_like(embeds)
        for node, weight in zip(nodes, weights, strict=True):
            mean += weight / 2 * _gradient(scene, target, "embed", base + (1 + node) / 2 * (embeds - base))
        units = (embeds - base) * mean
        _same(scene, target, got, units, units.sum(-1))
        assert got.delta is not None and got.baseline, "integrated_gradients must say its delta and its baseline"
        change = _value(scene, target, scene.truth.logits) - _value(scene, target, _logits(scene, base))
        want = got.scores.sum(1) - change
        error, most = (got.delta - want).abs().max().item(), want.abs().max().item()
        assert error <= 1e-5 * max(most, change.abs().max().item()), (
            f"delta is {got.delta.tolist()}; the scores exceed what they explain by {want.tolist()}"
        )


def _embeds(scene: Scene, token: int) -> Tensor:
    return scene.oracle.run(torch.full_like(scene.ids, token)).sites["embed"]


def _logits(scene: Scene, embeds: Tensor) -> Tensor:
    return scene.oracle.run(scene.ids, scene.mask, [replace("embed", embeds)]).logits


def _occlusion(context: Context, scene: Scene, target: Target) -> None:
    for baseline, base in (("zero", 0 * scene.truth.sites["embed"]), (9, _embeds(scene, 9))):
        got = context.lens(scene).attribute(scene.inputs, target, method="occlusion", baseline=baseline)
        scores = torch.zeros(3, 8, dtype=torch.float64)
        for column in range(8):
            embeds = scene.truth.sites["embed"].clone()
            embeds[:, column] = base[:, column]
            scores[:, column] = _value(scene, target, scene.truth.logits) - _value(
                scene, target, _logits(scene, embeds)
            )
        _same(scene, target, got, None, scores * _before(scene, target))
        assert (scores < 0).any() and (scores > 0).any(), "vacuous: no score has the other sign"


def _layer(context: Context, scene: Scene, site: str) -> None:
    target = TARGETS["contrast"]
    got = context.lens(scene).attribute(scene.inputs, target, method="layer_gradient_x_activation", site=site)
    units = _gradient(scene, target, site) * scene.truth.sites[site]
    _same(scene, target, got, units, units.flatten(2).sum(-1))


def _attention(context: Context, scene: Scene) -> None:
    target = TARGETS["contrast"]
    got = context.lens(scene).attribute(scene.inputs, target, method="attention")
    patterns = [scene.truth.sites[f"blocks.{layer}.attn.pattern"] for layer in range(LAYERS)]
    last = torch.tensor(_last(scene, target))
    rows = torch.stack([pattern[torch.arange(3), :, last] for pattern in patterns], dim=1)  # row, layer, head, key
    units = rows.permute(0, 3, 1, 2)
    _same(scene, target, got, units, units.flatten(2).mean(-1))


def _value_zeroing(context: Context, scene: Scene) -> None:
    target = TARGETS["contrast"]
    got = context.lens(scene).attribute(scene.inputs, target, method="value_zeroing")
    units = torch.zeros(3, 8, LAYERS, dtype=torch.float64)
    for layer in range(LAYERS):
        after = f"blocks.{layer}.resid_post" if layer < LAYERS - 1 else "final_norm"
        for row, column in _before(scene, target).nonzero().tolist():
            own = _real(scene)[row]
            ids, at = scene.ids[row : row + 1, own], int(own[:column].sum())
            edit = zero(f"blocks.{layer}.attn.v", positions=[at])
            clean, without = (scene.oracle.run(ids, edits=e).sites[after][0, target.position] for e in ([], [edit]))
            units[row, column, layer] = 1 - torch.cosine_similarity(clean, without, dim=0)
    units = units / units.sum(1, keepdim=True)
    _same(scene, target, got, units, units.mean(-1), VALUE_ZEROING)


# ---- the other promises


def _complete(context: Context, scene: Scene) -> None:
    """With many steps the scores add up to what they explain."""
    target = TARGETS["contrast"]
    got = context.lens(scene).attribute(scene.inputs, target, method="integrated_gradients", baseline=9, steps=300)
    change = _value(scene, target, scene.truth.logits) - _value(scene, target, _logits(scene, _embeds(scene, 9)))
    error = (got.scores.sum(1) - change).abs().max().item()
    assert error <= 1e-4 * change.abs().max().item(), f"300 steps leave {error:.3g} of {change.tolist()} unexplained"


def _frozen(context: Context, scene: Scene) -> None:
    """Neither frozen parameters nor the caller's own grad mode matter."""
    model, tokenizer = context.fresh(scene.family)
    model.requires_grad_(False)
    with context.backend(model, tokenizer) as lens:
        for mode in (torch.no_grad(), torch.inference_mode()):
            for method in ("saliency", "integrated_gradients", "layer_gradient_x_activation"):
                if _lacks(context, method):
                    continue
                with mode:
                    got = lens.attribute(scene.inputs, 5, **_options(method))
                want = context.lens(scene).attribute(scene.inputs, 5, **_options(method))
                assert torch.allclose(got.scores, want.scores, rtol=1e-6), f"{method} of a frozen model differs"
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters()), "parameters were unfrozen"


def _owned(context: Context, scene: Scene) -> None:
    given = {"input_ids": scene.ids.clone(), "baseline": torch.ones(32, dtype=torch.float64)}
    lens = context.lens(scene)

    def attribute() -> Attribution:
        return lens.attribute(given["input_ids"], 5, method="integrated_gradients", baseline=given["baseline"], steps=4)

    first = attribute()
    assert torch.equal(given["input_ids"], scene.ids), "the caller's ids were changed"
    assert not given["baseline"].requires_grad and bool((given["baseline"] == 1).all()), "the caller's baseline changed"
    for tensor in (first.scores, first.units, first.delta):
        assert tensor is not None and not tensor.requires_grad and tensor.grad_fn is None, "the result is in a graph"
        tensor.fill_(-7.0)
    again = attribute()
    assert not (again.scores == -7).any(), "the result shares memory with the backend"


def _mistakes(context: Context, scene: Scene) -> None:
    model, tokenizer = context.fresh(scene.family)
    runs: list[int] = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))  # before the backend is opened, so a shadow has it too
    ids = scene.ids[:2, :4]
    with context.backend(model, tokenizer) as lens:
        for what, target, options, kind, says in _bad():
            if _lacks(context, options.get("method", "")):
                continue
            try:
                lens.attribute(ids, target, **{"method": "saliency", **options})
            except UnsupportedError:
                raise
            except CrosslensError as error:
                assert isinstance(error, kind), f"{what}: {type(error).__name__}, must be {kind.__name__}: {error}"
                missing = [text for text in says if text not in str(error)]
                assert not missing, f"{what}: the error does not mention {missing}: {error}"
            else:
                raise AssertionError(f"{what}: nothing was raised")
        assert not runs, "the model ran before a mistake was refused"
        lens.attribute(ids, 5, method="saliency")
        assert runs, "vacuous: the hook does not see the model run"
    expect(ClosedError, lambda: lens.attribute(ids, 5, method="saliency"), "closed")


def _bad() -> Iterator[tuple[str, Any, Mapping[str, Any], type[CrosslensError], tuple[str, ...]]]:
    integrated, layer = {"method": "integrated_gradients"}, {"method": "layer_gradient_x_activation"}
    yield "misspelled method", 5, {"method": "salience"}, InputError, ("salience", "'saliency'")
    yield "text", "dog", {}, InputError, ("'dog'", "token id")
    yield "token out of range", 999, {}, InputError, ("999", "311")
    yield "one token too many", Target([1, 2, 3]), {}, InputError, ("[1, 2, 3]", "2 rows")
    yield "fractional token", 1.5, {}, InputError, ("1.5",)
    yield "contrast with itself", Target([4, 5], minus=5), {}, InputError, ("row 1", "itself")
    unknown: Any = "logits"
    yield "unknown quantity", Target(5, of=unknown), {}, InputError, ("'logits'", "'probability'")
    yield "position beyond the end", Target(5, position=4), {}, InputError, ("4", "row 0", "4 tokens")
    yield "position before the start", Target(5, position=-5), {}, InputError, ("-5", "row 0")
    yield "steps of saliency", 5, {"steps": 8}, InputError, ("saliency", "steps")
    yield "no steps", 5, {**integrated, "steps": 0}, InputError, ("steps=0",)
    yield "baseline of saliency", 5, {"baseline": "zero"}, InputError, ("saliency", "baseline")
    yield "unknown baseline", 5, {**integrated, "baseline": "mean"}, InputError, ("'mean'", "'zero'")
    yield "baseline of wrong shape", 5, {**integrated, "baseline": torch.ones(2, 4)}, InputError, ("(2, 4)", "(32,)")
    yield "baseline of wrong dtype", 5, {**integrated, "baseline": torch.ones(32)}, InputError, ("float32",)
    yield "baseline out of range", 5, {**integrated, "baseline": 400}, InputError, ("400",)
    yield "no site", 5, layer, InputError, ("site=",)
    yield "misspelled site", 5, {**layer, "site": "blocks.1.mlp.pots"}, SiteError, ("blocks.1.mlp.post",)
    yield "many sites", 5, {**layer, "site": "blocks.*.mlp.post"}, SiteError, ("one canonical site",)
    yield "site of saliency", 5, {"site": "embed"}, InputError, ("saliency", "site")


def _lacking(context: Context, scene: Scene) -> None:
    for method in METHODS:
        if _lacks(context, method):
            _refused(context, scene, method)
        else:
            context.lens(scene).attribute(scene.ids, 5, **_options(method))


def _refused(context: Context, scene: Scene, method: str) -> None:
    assert issubclass(context.backend, AttributionInspector), "only those have methods that they lack"
    reason = context.backend.lacking[method].reason
    expect(UnsupportedError, lambda: context.lens(scene).attribute(scene.inputs, 5, **_options(method)), reason)


def _lacks(context: Context, method: str) -> bool:
    lacking: Mapping[str, Support] = getattr(context.backend, "lacking", {})
    return method in lacking


def _options(method: str) -> dict[str, Any]:
    site = {"site": "blocks.1.mlp.post"} if method == "layer_gradient_x_activation" else {}
    return {"method": method, **site}


class _Oops(Exception):
    """What a user's own hook raises."""


def _residue(context: Context, scene: Scene, fails: bool) -> None:
    model, tokenizer = context.fresh(scene.family, attention="sdpa")
    armed: list[bool] = []

    def explode(*_: Any) -> None:
        if armed:
            raise _Oops("inside the model")

    model.get_submodule("lm_head").register_forward_hook(explode)
    gradient = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = gradient  # in the middle of the user's own training step
    inputs = {"input_ids": scene.ids.clone()}
    before = snapshot(model, tokenizer, inputs)
    with context.backend(model, tokenizer) as lens:
        lens.attribute(inputs, 5, method="saliency")
        for method in METHODS:
            if _lacks(context, method):
                continue
            if fails:
                armed.append(True)
                expect(_Oops, partial(_attribute, lens, inputs, method), "inside")
                armed.clear()
            _attribute(lens, inputs, method)
            during = differences(before, snapshot(model, tokenizer, inputs))
            assert not during, f"changed by {method} while the inspector is open: {during[:6]}"
    after = differences(before, snapshot(model, tokenizer, inputs))
    assert not after, f"changed after close: {after[:6]}"
    assert model.lm_head.weight.grad is gradient and bool((gradient == 1).all()), "the user's gradients were changed"


def _attribute(lens: Inspector, inputs: Any, method: str) -> Attribution:
    return lens.attribute(inputs, Target(5, position=3), **_options(method))


def _beside(context: Context, scene: Scene) -> None:
    model, tokenizer = context.fresh(scene.family)
    with (
        context.backend(model, tokenizer) as one,
        context.backend(model, tokenizer) as two,
        HooksInspector(model, tokenizer) as hooks,
    ):
        for lens in (one, two, one):
            got = lens.attribute(scene.inputs, 5, method="input_x_gradient")
            want = _gradient(scene, Target(5), "embed") * scene.truth.sites["embed"]
            _same(scene, Target(5), got, want, want.sum(-1))
            run = hooks.run(scene.inputs, capture=["blocks.1.resid_post"])
            scene.assert_close(run.logits, scene.truth.logits, "logits", "of hooks beside attribution")
        two.close()
        again = one.attribute(scene.inputs, 5, method="input_x_gradient")
        assert torch.allclose(again.scores, got.scores, rtol=1e-6), "another result after a second inspector closed"
