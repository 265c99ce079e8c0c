"""Guarantees 2 to 5 and 8: ownership, order, early stop, padding, generation, and the company of other inspectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from crosslens.adapters.edits import Edit, add, apply, replace, scale, zero
from crosslens.adapters.errors import ClosedError, InputError, SiteError
from crosslens.adapters.hooks import HooksInspector

from .kit import FAMILIES, Check, Context, Promise, Scene, expect
from .right import LAYER, make_edit, sites_of

RESID = f"blocks.{LAYER}.resid_post"


def checks(context: Context, families: Sequence[str] = FAMILIES) -> Iterator[Check]:
    """Checks by family."""
    for family in families:
        plain = Scene(family, torch.float64)
        pads = [Scene(family, torch.float64, side) for side in ("left", "right")]

        def on(
            promise: Promise,
            what: str,
            needs: Sequence[str],
            body: Callable[..., None],
            scene: Scene,
        ) -> Check:
            return Check(f"{promise}/{what}/{scene.id}", promise, tuple(needs), partial(body, scene=scene), context)

        read = ("capture.residual",)
        yield on("owned", "captures-share-no-memory", read, _captures_share_no_memory, plain)
        yield on("owned", "in-place-edit-downstream", (*read, "edit.apply"), _in_place_downstream, plain)
        yield on("owned", "edit-value-unchanged", (*read, "edit.replace"), _value_unchanged, plain)
        yield on("owned", "inputs-unchanged", ("padding.left", *read), _inputs_unchanged, pads[0])
        yield on("order-free", "captures-in-any-order", read, _any_order, plain)
        yield on("order-free", "edits-of-many-sites-in-any-order", ("edit.scale",), _edits_any_order, plain)
        yield on("order-free", "edits-of-one-site-in-given-order", ("edit.add", "edit.scale"), _given_order, plain)
        yield on("order-free", "capture-sees-edit", (*read, "edit.zero"), _capture_sees_edit, plain)
        yield on("order-free", "capture-under-another-name", (*read, "edit.zero", "capture.module"), _other_name, plain)
        yield on("right", "native-address", ("capture.native", "edit.zero"), _native, plain)
        yield on("right", "parameter-put-in-place-of-another", read, _new_parameter, plain)
        yield on("right", "until", (*read, "until"), _until, plain)
        yield on("right", "gradients-of-frozen-model", ("gradients",), _frozen, plain)
        yield on("right", "gradients-under-edits", ("gradients", "edit.positions"), _edited_gradient, plain)
        for scene in pads:
            needs = (f"padding.{scene.padding}", "edit.positions", "edit.replace")
            yield on("batch-invariant", "rows-alone", needs, _rows_alone, scene)
        for scene in (plain, *pads):
            padding = () if scene.padding == "none" else (f"padding.{scene.padding}",)
            for cache in ("generate", "generate.uncached"):
                needs = (cache, "generate.capture", "generate.edit", *padding)
                yield on("positions", cache, needs, partial(_generate, cached=cache == "generate"), scene)
        yield on("not-alone", "two-of-a-kind", ("coexist", *read), _two_of_a_kind, plain)
        yield on("not-alone", "beside-hooks", ("coexist", *read), _beside_hooks, plain)
        yield on("not-alone", "close-one-of-two", ("coexist", *read), _close_one, plain)
        yield on("not-alone", "inside-another", ("nested", "edit.apply"), _inside, plain)
        yield on("no-trace", "closed-is-closed", (), _closed, plain)


# ---- owned


def _captures_share_no_memory(context: Context, scene: Scene) -> None:
    lens = context.lens(scene)
    sites = sites_of(scene.family)
    sites.remove(f"blocks.{LAYER}.attn.pattern")
    first = lens.run(scene.inputs, capture=sites)
    before = {site: first[site].clone() for site in sites}
    owners: dict[int, str] = {p.untyped_storage().data_ptr(): n for n, p in scene.model.named_parameters()}
    for site in sites:
        where = first[site].untyped_storage().data_ptr()
        assert where not in owners, f"{site} shares memory with {owners[where]}"
        owners[where] = site
        first[site].zero_()
    again = lens.run(scene.inputs, capture=sites)
    for site in sites:
        assert torch.equal(again[site], before[site]), f"{site} changed after the caller wrote to an earlier capture"


def _in_place_downstream(context: Context, scene: Scene) -> None:
    upstream, downstream = f"blocks.{LAYER - 1}.resid_post", f"blocks.{LAYER}.resid_pre"
    run = context.lens(scene).run(
        scene.inputs, capture=[upstream, downstream], edits=[apply(downstream, lambda part: part.zero_())]
    )
    scene.assert_close(run[upstream], scene.truth.sites[upstream], upstream, f"{upstream}, edited in place after it")
    assert not run[downstream].any(), f"{downstream} does not show its in-place edit"


def _value_unchanged(context: Context, scene: Scene) -> None:
    value = make_edit(scene, RESID, "replace", ()).value
    assert isinstance(value, Tensor)
    before = value.clone()
    run = context.lens(scene).run(
        scene.inputs, capture=[RESID], edits=[replace(RESID, value), apply(RESID, lambda part: part.mul_(2))]
    )
    assert torch.equal(value, before), "the caller's value was changed"
    assert run[RESID].untyped_storage().data_ptr() != value.untyped_storage().data_ptr(), "the capture is the value"


def _inputs_unchanged(context: Context, scene: Scene) -> None:
    given = {name: tensor.clone() for name, tensor in scene.inputs.items()}
    context.lens(scene).run(given, capture=[RESID])
    for name, tensor in scene.inputs.items():
        assert torch.equal(given[name], tensor), f"{name} of the caller was changed"


# ---- order


def _any_order(context: Context, scene: Scene) -> None:
    sites = [s for s in sites_of(scene.family) if not s.endswith("pattern")]
    lens = context.lens(scene)
    forward = lens.run(scene.inputs, capture=sites)
    backward = lens.run(scene.inputs, capture=sites[::-1])
    assert list(backward) == sites[::-1], "captures do not come in the order they were asked for"
    for site in sites:
        scene.assert_close(backward[site], scene.truth.sites[site], site)
        assert torch.equal(forward[site], backward[site]), f"{site} depends on the order of names"


def _edits_any_order(context: Context, scene: Scene) -> None:
    sites = [s for s in sites_of(scene.family) if "mlp" in s or "attn.z" in s or s == "embed"]
    edits = [scale(site, -1.5) for site in sites]
    want = scene.oracle.run(scene.ids, edits=edits).logits
    for given in (edits, edits[::-1]):
        scene.assert_close(context.lens(scene).run(scene.inputs, edits=given).logits, want, "logits")


def _given_order(context: Context, scene: Scene) -> None:
    value = make_edit(scene, RESID, "add", ())
    for edits in ([value, scale(RESID, 3.0)], [scale(RESID, 3.0), value]):
        want = scene.oracle.run(scene.ids, edits=edits)
        run = context.lens(scene).run(scene.inputs, capture=[RESID], edits=edits)
        scene.assert_close(run[RESID], want.sites[RESID], RESID, "two edits of one site")


def _capture_sees_edit(context: Context, scene: Scene) -> None:
    sites = [s for s in sites_of(scene.family) if "resid" in s or "mlp" in s]
    for site in sites:
        if site.endswith("resid_mid") and not context.backend.supports()["edit.resid_mid"]:
            continue  # has its own checks
        run = context.lens(scene).run(scene.inputs, capture=[site], edits=[zero(site)])
        assert not run[site].any(), f"{site} does not show its edit"


def _other_name(context: Context, scene: Scene) -> None:
    path = {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}[scene.family]
    other = f"module:{path}.{LAYER}:output"
    for captured, edited in ((other, RESID), (RESID, other)):
        run = context.lens(scene).run(scene.inputs, capture=[captured], edits=[zero(edited)])
        assert not run[captured].any(), f"{captured} does not show the edit of {edited}, the same tensor"


def _native(context: Context, scene: Scene) -> None:
    lens, site = context.lens(scene), f"blocks.{LAYER}.mlp.out"
    native = f"native:{lens.native_address(site)}"
    run = lens.run(scene.inputs, capture=[native])
    scene.assert_close(run[native], scene.truth.sites[site], site, native)
    want = scene.oracle.run(scene.ids, edits=[zero(site)]).logits
    scene.assert_close(
        lens.run(scene.inputs, edits=[zero(native)]).logits, want, "logits", f"logits after zero at {native}"
    )
    expect(SiteError, lambda: lens.run(scene.inputs, capture=["native:no.such.thing"]), "no.such.thing")


def _new_parameter(context: Context, scene: Scene) -> None:
    """A parameter that the caller puts in the place of another counts from the next run on."""
    model, tokenizer = context.fresh(scene.family)
    with context.backend(model, tokenizer) as lens:
        lens.run(scene.inputs)
        head = model.get_submodule("lm_head")
        head.weight = torch.nn.Parameter(head.weight.detach() * 2)
        scene.assert_close(lens.run(scene.inputs).logits, 2 * scene.truth.logits, "logits", "after a new parameter")


# ---- early stop, gradients


def _until(context: Context, scene: Scene) -> None:
    lens = context.lens(scene)
    with _work(lens) as full:
        lens.run(scene.inputs)
    before = -1
    for stop in ("embed", f"blocks.{LAYER}.mlp.post", RESID):
        with _work(lens) as stopped:
            run = lens.run(scene.inputs, capture=[stop], until=stop)
        scene.assert_close(run[stop], scene.truth.sites[stop], stop, f"{stop} with until={stop}")
        assert before < stopped.count < 0.8 * full.count, (
            f"until={stop!r} did {stopped.count:g} of the work of a full forward, {full.count:g}: the forward went on"
        )
        before = stopped.count
        expect(SiteError, partial(getattr, run, "logits"), "until")
    scene.assert_close(lens.run(scene.inputs).logits, scene.truth.logits, "logits", "full run after stopped ones")


def _work(lens: Any) -> Any:
    """Counts linear layers; or whatever a backend that runs no PyTorch module counts, by a method `work` of its own."""
    return lens.work() if hasattr(lens, "work") else _CountProjections()


class _CountProjections(TorchFunctionMode):
    """Counts the linear layers that really run: what a library does beside the model does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("linear", "addmm")  # addmm: gpt2's Conv1D
        return func(*args, **(kwargs or {}))


def _frozen(context: Context, scene: Scene) -> None:
    model, tokenizer = context.fresh(scene.family)
    model.requires_grad_(False)
    sites = [s for s in sites_of(scene.family) if "resid" in s or "mlp" in s]
    with context.backend(model, tokenizer) as lens, torch.no_grad():
        got = lens.gradients(scene.inputs, sites, lambda logits: logits[:, -1, 5] - logits[:, -1, 9])
    want = scene.oracle.gradients(scene.ids, sites, lambda logits: logits[:, -1, 5] - logits[:, -1, 9])
    for site in sites:
        scene.assert_close(got[site], want[site], site, f"gradient at {site} of a frozen model under no_grad")
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters()), "parameters were unfrozen"


def _edited_gradient(context: Context, scene: Scene) -> None:
    edits = [make_edit(scene, RESID, "replace", ("positions",)), scale(f"blocks.{LAYER}.attn.out", 2.0)]
    sites = ["embed", f"blocks.{LAYER}.attn.out", RESID]
    got = context.lens(scene).gradients(scene.inputs, sites, lambda logits: logits[:, -1, 5], edits=edits)
    want = scene.oracle.gradients(scene.ids, sites, lambda logits: logits[:, -1, 5], edits=edits)
    for site in sites:
        scene.assert_close(got[site], want[site], site, f"gradient at {site} under edits")


# ---- batches and generation


def _rows_alone(context: Context, scene: Scene) -> None:
    lens = context.lens(scene)
    edit = make_edit(scene, RESID, "replace", ("positions",))
    assert isinstance(edit.value, Tensor)
    assert scene.mask is not None
    batch = lens.run(scene.inputs, capture=[RESID], edits=[edit])
    for row, length in enumerate(scene.lengths):
        own = scene.mask[row].bool()
        alone = lens.run(
            scene.ids[row : row + 1, own],
            capture=[RESID],
            edits=[replace(RESID, edit.value[row : row + 1], positions=[-1, 1])],
        )
        for what, got, want in ((RESID, batch[RESID], alone[RESID]), ("logits", batch.logits, alone.logits)):
            error = (got[row, own] - want[0]).abs().max().item()
            limit = scene.noise() * want.abs().max().item()
            assert error <= limit, f"{what} of row {row} ({length} tokens): {error:.3g} from what it gets alone"


def generation_edits(scene: Scene, new: int) -> dict[str, list[Edit]]:
    """Edits that a generation must place: a prompt position, a generated one, everywhere, by step, patterns."""
    shape = scene.truth.sites[RESID].shape
    generator = torch.Generator().manual_seed(11)
    size = 3 * scene.truth.sites[RESID].square().mean().sqrt()

    def value(positions: int) -> Tensor:
        noise = torch.randn(shape[0], positions, shape[2], generator=generator, dtype=torch.float64)
        return (noise * size).to(scene.dtype)

    last = max(scene.lengths) - 1
    return {
        "none": [],
        "prompt": [replace(RESID, value(2), positions=[-1, 1])],
        "absolute": [replace(RESID, value(2), positions=[min(scene.lengths) + 1, min(scene.lengths) + 2])],
        "everywhere": [add(RESID, value(1))],
        "steps": [add(RESID, value(1), steps=[2])],
        "heads": [
            zero(f"blocks.{LAYER}.attn.z", heads=[1], positions=[0, min(scene.lengths)]),
            scale(RESID, 2.0, rows=[1]),
        ],
        "apply": [apply(f"blocks.{LAYER}.mlp.post", lambda part: part.tanh() * 2, steps=range(1, new))],
        "pattern": [zero(f"blocks.{LAYER}.attn.pattern", units=[1], heads=[2])] if last else [],
    }


def _generate(context: Context, scene: Scene, cached: bool) -> None:
    lens, new = context.lens(scene), 4
    sites = ["embed", f"blocks.{LAYER}.attn.z", f"blocks.{LAYER}.attn.pattern", RESID]
    continuations = set()
    for name, edits in generation_edits(scene, new).items():
        if name == "pattern" and not context.backend.supports()["edit.pattern"]:
            continue
        wanted = sites if context.backend.supports()["capture.pattern"] else [s for s in sites if "pattern" not in s]
        tokens, truth = scene.oracle.generate(scene.ids, new, scene.mask, edits)
        out = lens.generate(scene.inputs, max_new_tokens=new, capture=wanted, edits=edits, use_cache=cached)
        assert torch.equal(out.new_tokens, tokens[:, -new:]), f"{name}: other tokens than the oracle's"
        continuations.add(tuple(tokens[:, -new:].flatten().tolist()))
        for site in wanted:
            for row, length in enumerate(scene.lengths):
                total = length + new - 1
                got = _row(out[site], row, total, site, right=False)
                mask_right = scene.padding == "right"
                want = _row(truth.sites[site], row, total, site, right=mask_right, prompt=length, width=8)
                error = (got - want).abs().max().item()
                assert error <= scene.noise() * want.abs().max().item(), (
                    f"{name}: {site}, row {row}: off by {error:.3g}"
                )
    assert len(continuations) > 3, f"vacuous: the edits give only {len(continuations)} different continuations"


def _row(tensor: Tensor, row: int, total: int, site: str, *, right: bool, prompt: int = 0, width: int = 0) -> Tensor:
    """One row's real positions, in order: the last `total` columns, or a right-padded prompt and what follows it."""
    width_all = tensor.shape[-1] if site.endswith("pattern") else tensor.shape[1]
    columns = (
        [*range(prompt), *range(width, width + total - prompt)] if right else list(range(width_all - total, width_all))
    )
    one = tensor[row]
    return one[:, columns][:, :, columns] if site.endswith("pattern") else one[columns]


# ---- company


def _two_of_a_kind(context: Context, scene: Scene) -> None:
    _together(context, scene, context.backend)


def _beside_hooks(context: Context, scene: Scene) -> None:
    _together(context, scene, HooksInspector)


def _together(context: Context, scene: Scene, other: Any) -> None:
    model, tokenizer = context.fresh(scene.family)
    with context.backend(model, tokenizer) as one, other(model, tokenizer) as two:
        for lens in (one, two, one):
            run = lens.run(scene.inputs, capture=[RESID], edits=[scale(f"blocks.{LAYER}.mlp.out", 2.0)])
            want = scene.oracle.run(scene.ids, edits=[scale(f"blocks.{LAYER}.mlp.out", 2.0)])
            scene.assert_close(run[RESID], want.sites[RESID], RESID, f"{lens.name} beside another inspector")


def _close_one(context: Context, scene: Scene) -> None:
    model, tokenizer = context.fresh(scene.family)
    with context.backend(model, tokenizer) as stays:
        goes = context.backend(model, tokenizer)
        goes.run(scene.inputs)
        goes.close()
        run = stays.run(scene.inputs, capture=[RESID], edits=[zero(f"blocks.{LAYER}.mlp.out")])
        want = scene.oracle.run(scene.ids, edits=[zero(f"blocks.{LAYER}.mlp.out")])
        scene.assert_close(run[RESID], want.sites[RESID], RESID, "after another inspector was closed")


def _inside(context: Context, scene: Scene) -> None:
    """A run inside an edit: by a second inspector right, by the same one refused."""
    model, tokenizer = context.fresh(scene.family)
    with context.backend(model, tokenizer) as lens, context.backend(model, tokenizer) as second:

        def nested(inner: Any) -> Edit:
            return apply(RESID, lambda part: part + inner.run(scene.inputs, capture=[RESID])[RESID])

        run = lens.run(scene.inputs, capture=[RESID], edits=[nested(second)])
        scene.assert_close(run[RESID], 2 * scene.truth.sites[RESID], RESID, "a run inside an edit")
        expect(InputError, lambda: lens.run(scene.inputs, edits=[nested(lens)]), "second inspector")
        scene.assert_close(lens.run(scene.inputs).logits, scene.truth.logits, "logits", "after a refused nested run")


def _closed(context: Context, scene: Scene) -> None:
    model, tokenizer = context.fresh(scene.family)
    lens = context.backend(model, tokenizer)
    lens.close()
    lens.close()
    expect(ClosedError, lambda: lens.run(scene.inputs), "closed")
