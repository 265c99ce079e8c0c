"""Guarantee 1, and 4 by its padded scenes: each site x operation x family x dtype x padding against the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from crosslens.adapters.capabilities import capture_capability
from crosslens.adapters.edits import Edit, add, apply, replace, scale, zero
from crosslens.adapters.sites import BLOCK_AXES

from .kit import FAMILIES, Check, Context, Promise, Scene

LAYER = 1  # of three: there is something before it and something after it
OPERATIONS = (
    "replace", "add", "scale", "zero", "apply", "replace.rows", "add.positions", "scale.heads", "zero.units",
    "apply.rows+positions", "replace.positions+heads+units",
)  # fmt: skip


def scenes(families: Sequence[str]) -> list[Scene]:
    """Where the sites are checked: all paddings in float64, and the other dtypes."""
    found = []
    for family in families:
        found += [Scene(family, torch.float64, padding) for padding in ("none", "left", "right")]
        found += [Scene(family, torch.float64, "none", "sdpa"), Scene(family, torch.float32, "left")]
        found += [Scene(family, torch.float32), Scene(family, torch.bfloat16)]
    return found


def checks(context: Context, families: Sequence[str] = FAMILIES) -> Iterator[Check]:
    """One check for each scene, site and operation."""
    for scene in scenes(families):
        yield from _of_scene(context, scene)


def sites_of(family: str) -> list[str]:
    """Canonical sites of the tiny model of a family: those of the middle block and those outside the blocks."""
    local = [name for name in BLOCK_AXES if not (family == "gpt_neox" and name == "resid_mid")]
    return ["embed", *(f"blocks.{LAYER}.{name}" for name in local), "final_norm", "logits"]


def _of_scene(context: Context, common: Scene) -> Iterator[Check]:
    scene, eager = common, dataclasses.replace(common, arithmetic="eager")
    padding = () if scene.padding == "none" else (f"padding.{scene.padding}",)
    promise: Promise = "right" if scene.padding == "none" else "batch-invariant"

    def check(what: str, needs: tuple[str, ...], body: Callable[[Context], None]) -> Check:
        return Check(f"{promise}/{what}/{scene.id}", promise, (*needs, *padding), body, context)

    yield check("logits", ("capture.residual",), partial(_logits, scene=scene))
    for site in sites_of(scene.family):
        local = site.removeprefix(f"blocks.{LAYER}.")
        scene = eager if local == "attn.pattern" and common.attention != "eager" else common
        capture = capture_capability("canonical", local)
        yield check(f"capture/{site}", (capture,), partial(_capture, scene=scene, site=site))
        pattern = ("gradients.pattern",) if local == "attn.pattern" else ()
        if scene.dtype != torch.bfloat16:  # its gradients through softmax are mostly noise
            needs = ("gradients", capture, *pattern)
            yield check(f"gradients/{site}", needs, partial(_gradient, scene=scene, site=site))
        special = {"resid_mid": ("edit.resid_mid",), "attn.pattern": ("edit.pattern",)}.get(local, ())
        for operation in OPERATIONS:
            kind, _, selections = operation.partition(".")
            chosen = selections.split("+") if selections else []
            if ("heads" in chosen and not local.startswith("attn.")) or (local == "attn.out" and "heads" in chosen):
                chosen.remove("heads")
                if not chosen:
                    continue
            needs = (*special, f"edit.{kind}", *(f"edit.{s}" for s in chosen), capture)
            name = f"{kind}{'.' if chosen else ''}{'+'.join(chosen)}/{site}"
            yield check(name, needs, partial(_edited, scene=scene, site=site, kind=kind, chosen=chosen))


def make_edit(scene: Scene, site: str, kind: str, chosen: Sequence[str]) -> Edit:
    """An edit of the site whose effect is far above noise, with the selections asked for."""
    whole = scene.truth.sites[site]
    picks = {
        "rows": [0, 2],
        "positions": [-1, 1],
        "heads": [1],
        "units": [0, 2] if site.endswith("pattern") else list(range(0, whole.shape[-1], 2)),
    }
    selection = {name: picks[name] for name in chosen}
    shape = list(whole.shape)
    axis = {"rows": 0, "positions": 2 if site.endswith("pattern") else 1, "units": whole.ndim - 1}
    axis["heads"] = 1 if site.endswith("pattern") else 2
    for name in chosen:
        shape[axis[name]] = len(picks[name])
    size = 2 * whole.square().mean().sqrt()
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * size).to(scene.dtype)
    if site.endswith("pattern") and scene.mask is not None and "units" not in chosen:
        value = value * scene.mask[selection.get("rows", slice(None)), None, None].to(
            scene.dtype
        )  # no weight on padding
    if kind in ("replace", "add"):
        return {"replace": replace, "add": add}[kind](site, value, **selection)
    if kind == "scale":
        return scale(site, -2.0, **selection)
    if kind == "zero":
        return zero(site, **selection)
    return apply(site, _double if site.endswith("pattern") else _reverse_and_double, **selection)


def _double(part: Tensor) -> Tensor:
    return part.mul_(2)


def _reverse_and_double(part: Tensor) -> Tensor:
    """Works in place on what it is given, as a user's function may."""
    part.mul_(2)
    return part.flip(-1)


def _logits(context: Context, scene: Scene) -> None:
    run = context.lens(scene).run(scene.inputs)
    scene.assert_close(run.logits, scene.truth.logits, "logits")


def _capture(context: Context, scene: Scene, site: str) -> None:
    run = context.lens(scene).run(scene.inputs, capture=[site])
    scene.assert_close(run[site], scene.truth.sites[site], site)


def _edited(context: Context, scene: Scene, site: str, kind: str, chosen: Sequence[str]) -> None:
    edit = make_edit(scene, site, kind, chosen)
    want = scene.oracle.run(scene.ids, scene.mask, [edit])
    moved, scale_of = scene.error(want.logits, scene.truth.logits, "logits")
    # bfloat16's noise is large: there an edit only has to be seen
    assert moved > min(10 * scene.noise(), 1e-2) * scale_of, f"vacuous: the edit moves the logits by {moved:.2g} only"
    run = context.lens(scene).run(scene.inputs, capture=[site], edits=[edit])
    scene.assert_close(run[site], want.sites[site], site, f"{site} after {kind}")
    scene.assert_close(run.logits, want.logits, "logits", f"logits after {kind} at {site}")


def _gradient(context: Context, scene: Scene, site: str) -> None:
    weight = torch.randn(scene.truth.logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if scene.mask is not None:
        weight = weight * scene.mask[:, :, None]

    def metric(logits: Tensor) -> Tensor:
        return (logits * weight.to(logits.dtype)).sum((1, 2))

    got = context.lens(scene).gradients(scene.inputs, [site], metric)[site]
    want = scene.oracle.gradients(scene.ids, [site], metric, scene.mask)[site]
    assert want.abs().max() > 0, "vacuous: the metric does not depend on the site"
    scene.assert_close(got, want, site, f"gradient at {site}")
