"""Every family, also those without a hand-written oracle: invariants, the plain forward, and weights changed by hand.

The reference is the model's own forward in float64, run bare. What an edit must do is said without hooks: setting a
head's result to zero is what the forward gives when the columns of the output projection that read this head are zero;
replacing a full cut by its value in another run gives that run's output; replacing a site by its own value nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crosslens.adapters.architectures import describe
from crosslens.adapters.attribution import Target
from crosslens.adapters.edits import add, replace, zero
from crosslens.adapters.families import FAMILIES
from crosslens.adapters.sites import BLOCK_AXES

from . import definitions
from .kit import Check, Context, Padding, Promise, Scene

LAYER = 1
OPENED = ("attn.q", "attn.v", "attn.z", "mlp.post")
EXACT = 1e-10  # relative: the same arithmetic, in float64
SINGLE = 5e-6  # where one of the two runs passes a float32 island with values that differ in the last bit


def checks(context: Context, families: Sequence[str]) -> Iterator[Check]:
    """A walk through every site of each family."""
    for family in families:
        scene = Scene(family, torch.float64)

        def on(what: str, needs: Sequence[str], body: Callable[..., None], scene: Scene = scene) -> Check:
            promise: Promise = "right" if scene.padding == "none" else "batch-invariant"
            named = f"{promise}/walk/{what}/{scene.id}"
            return Check(named, promise, tuple(needs), partial(body, scene=scene), context)

        whole = ("capture.residual", "capture.attention", "capture.mlp")
        yield on("logits", ("capture.residual",), _logits)
        yield on("values", whole, _values)
        yield on("shape-of-pattern", ("capture.pattern",), _shape_of_pattern)
        yield on("own-values", (*whole, "edit.replace", *_needed(family)), _own_values)
        yield on("own-pattern", ("edit.pattern", "edit.replace", "capture.pattern"), _own_pattern)
        yield on("another-row", (*whole, "edit.replace"), _another_row)
        yield on("gradients", ("gradients", *whole, "edit.add", *_needed(family)), _slopes)
        yield on("unembedding", ("capture.residual",), _unembedding)
        yield on("attribute", ("attribute",), _attribute)
        for local in ("resid_pre", "resid_mid", "resid_post"):
            if local not in _absent(family):
                special = ("edit.resid_mid",) if local == "resid_mid" else ()
                yield on(f"cut/{local}", ("edit.replace", "capture.residual", *special), partial(_cut, local=local))
        yield on("sums", ("capture.residual", "capture.attention", "capture.mlp"), _sums)
        yield on("pattern-by-definition", ("capture.pattern", "capture.attention"), _pattern)
        yield on("head", ("edit.zero", "edit.heads"), _head)
        yield on("neuron", ("edit.zero", "edit.units"), _neuron)
        yield on("value-head", ("edit.zero", "edit.heads"), _value_head)
        yield on("embedding", ("edit.add", "edit.positions"), _embedding)
        sides: tuple[Padding, ...] = ("left", "right")
        for side in sides:
            padded = Scene(family, torch.float64, side)
            needs = (f"padding.{side}", "capture.residual")
            yield on("rows-alone", needs, _rows_alone, padded)
        if _causal(family):
            yield on("generation", ("generate", "generate.capture"), _generation)


def _needed(family: str) -> tuple[str, ...]:
    return () if "resid_mid" in _absent(family) else ("edit.resid_mid",)


def _absent(family: str) -> set[str]:
    return {"resid_mid"} if family == "gpt_neox" else set()


def _causal(family: str) -> bool:
    return next(f for f in FAMILIES if f.name == family).causal


# ---- references


@torch.no_grad()
def _plain(scene: Scene, ids: Tensor | None = None) -> Any:
    """The model's own output, without any library."""
    return scene.model(input_ids=scene.ids if ids is None else ids)


def _other(scene: Scene) -> Tensor:
    """(3, 8) ids of another input."""
    vocabulary: int = scene.model.config.vocab_size
    return (scene.ids * 7 + 11) % (vocabulary - 3) + 3


def _close(got: Tensor, want: Tensor, what: str, noise: float = EXACT) -> None:
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, must be {tuple(want.shape)}"
    error, scale = float((got - want).abs().max()), float(want.abs().max())
    assert error <= noise * scale, f"{what}: off by {error / scale:.2g} of its largest value"


def _differ(a: Tensor, b: Tensor, what: str) -> None:
    change = float((a - b).abs().max() / b.abs().max())
    assert change > 1e-3, f"vacuous: {what} changes the output by {change:.2g} only"


@contextmanager
def _without_inputs(scene: Scene, module: str, columns: Sequence[int]) -> Iterator[None]:
    """The model whose projection at `module` takes no notice of some of its inputs."""
    projection: Any = scene.model.get_submodule(module)
    weight: Tensor = projection.weight.data
    before = weight.clone()
    if isinstance(projection, torch.nn.Linear):
        weight[:, list(columns)] = 0
    else:  # Conv1D keeps (in, out)
        weight[list(columns)] = 0
    try:
        yield
    finally:
        weight.copy_(before)


def _address(scene: Scene, local: str) -> Any:
    architecture = describe(scene.model)
    return architecture.address(architecture.sites.canonical[f"blocks.{LAYER}.{local}"])


# ---- checks


def _logits(context: Context, scene: Scene) -> None:
    run = context.lens(scene).run(scene.ids, capture="logits")
    want = _plain(scene).logits
    _close(run.logits, want, "logits", SINGLE)
    _close(run["logits"], want, "the site logits", SINGLE)


def _names(scene: Scene) -> list[str]:
    """Every site of the middle block but the pattern."""
    locals_ = [local for local in BLOCK_AXES if local not in {*_absent(scene.family), "attn.pattern"}]
    return [f"blocks.{LAYER}.{local}" for local in locals_]


def _values(context: Context, scene: Scene) -> None:
    """Shapes; the residual stream as the model itself returns it; and attention by its definition."""
    lens = context.lens(scene)
    names = ["embed", *_names(scene), "final_norm", "logits"]
    run = lens.run(scene.ids, capture=names)
    for name in names:
        named = lens.architecture.sites.canonical[name]
        sizes = {"batch": 3, "pos": 8, **named.sizes}
        want = tuple(sizes[axis] for axis in named.axes)
        assert tuple(run[name].shape) == want, f"{name}: shape {tuple(run[name].shape)}, must be {want}"
        assert run[name].dtype == torch.float64, f"{name}: {run[name].dtype}"
    with torch.no_grad():
        states = scene.model(input_ids=scene.ids, output_hidden_states=True).hidden_states
        _close(run["embed"], scene.model.get_input_embeddings()(scene.ids), "embed", SINGLE)
    _close(run[f"blocks.{LAYER}.resid_pre"], states[LAYER], "resid_pre", SINGLE)
    _close(run[f"blocks.{LAYER}.resid_post"], states[LAYER + 1], "resid_post", SINGLE)
    for layer in (0, LAYER):  # where attention takes turns between two kinds, one of each
        run = lens.run(scene.ids, capture=[f"blocks.{layer}.attn.{part}" for part in "qkvz"])
        q, k, v, z = (run[f"blocks.{layer}.attn.{part}"] for part in "qkvz")
        weights = definitions.pattern(scene.model, layer, q, k, causal=_causal(scene.family))
        _close(z, definitions.mixed(weights, v), f"blocks.{layer}.attn.z from q, k and v", SINGLE)


def _shape_of_pattern(context: Context, scene: Scene) -> None:
    site = f"blocks.{LAYER}.attn.pattern"
    got = context.lens(scene).run(scene.ids, capture=site)[site]
    assert tuple(got.shape) == (3, 4, 8, 8), f"{site}: shape {tuple(got.shape)}, must be (3, 4, 8, 8)"
    assert got.dtype == torch.float64


def _own_values(context: Context, scene: Scene) -> None:
    """Every site at once, each replaced by what it is."""
    lens = context.lens(scene)
    run = lens.run(scene.ids, capture=_names(scene))
    again = lens.run(scene.ids, edits=[replace(name, run[name]) for name in _names(scene)], capture=_names(scene))
    _close(again.logits, run.logits, "replacing every site by its own value")


def _own_pattern(context: Context, scene: Scene) -> None:
    lens, site = context.lens(scene), f"blocks.{LAYER}.attn.pattern"
    run = lens.run(scene.ids, capture=site)
    again = lens.run(scene.ids, edits=[replace(site, run[site])])
    _close(again.logits, run.logits, "replacing the pattern by its own value")
    turned = run[site].roll(1, 0)
    changed = lens.run(scene.ids, edits=[replace(site, turned)], capture=site)
    _differ(changed.logits, run.logits, "the pattern of another row")
    _close(changed[site], turned, "the pattern under an edit")


def _another_row(context: Context, scene: Scene) -> None:
    """An edit arrives: at each site the values of another row, and not scaled ones, which a norm would undo."""
    lens = context.lens(scene)
    run = lens.run(scene.ids, capture=_names(scene))
    for local in ("attn.q", "attn.k", "attn.out", "mlp.out"):
        site = f"blocks.{LAYER}.{local}"
        turned = run[site].roll(1, 0)
        changed = lens.run(scene.ids, edits=[replace(site, turned)], capture=site)
        _differ(changed.logits, run.logits, f"{site} of another row")
        _close(changed[site], turned, f"{site} under an edit")


def _slopes(context: Context, scene: Scene) -> None:
    """The gradients are how fast the metric changes when all sites are moved at once."""
    lens, names = context.lens(scene), _names(scene)
    generator = torch.Generator().manual_seed(5)
    gradients = lens.gradients(scene.ids, names, _metric)
    moves = {n: torch.randn(gradients[n].shape, generator=generator, dtype=torch.float64) for n in names}
    for name in names:  # so that each has a say
        moves[name] *= 1 / float(gradients[name].norm())
    step = 1e-3 * float(min(1 / m.abs().max() for m in moves.values()))
    ends = [
        float(_metric(lens.run(scene.ids, edits=[add(n, sign * step * moves[n]) for n in names]).logits).sum())
        for sign in (1.0, -1.0)
    ]
    parts = {name: float((gradients[name] * moves[name]).sum()) for name in names}
    slope, want = (ends[0] - ends[1]) / (2 * step), sum(parts.values())
    scale = max(map(abs, parts.values()))
    assert scale > 0.1, "vacuous: the gradients hardly point anywhere"
    assert abs(slope - want) < 2e-2 * scale, f"gradients: {want:.6g} along a direction, moved {slope:.6g}: {parts}"


def _unembedding(context: Context, scene: Scene) -> None:
    """The logits are made from final_norm, by the unembedding alone."""
    run = context.lens(scene).run(scene.ids, capture="final_norm")
    with torch.no_grad():
        want = scene.model.get_output_embeddings()(run["final_norm"])
    cap = getattr(scene.model.config, "final_logit_softcapping", None)
    _close(run.logits, want if cap is None else cap * torch.tanh(want / cap), "the unembedding of final_norm", SINGLE)


def _metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 5] - logits[:, -2, 9]


def _attribute(context: Context, scene: Scene) -> None:
    """Input x gradient, by autograd through the model itself; the target is not the last position."""
    embeds = scene.model.get_input_embeddings()(scene.ids).detach().requires_grad_()
    scene.model(inputs_embeds=embeds).logits[:, 4, 5].sum().backward()
    found = context.lens(scene).attribute(scene.ids, Target(5, position=4), method="input_x_gradient")
    assert embeds.grad is not None
    want = (embeds * embeds.grad).detach().sum(-1)
    scene.model.zero_grad(set_to_none=True)
    _close(found.scores.double(), want, "input x gradient", 1e-5)


def _cut(context: Context, scene: Scene, local: str) -> None:
    """All that follows a full cut depends on it alone: the other run's value brings the other run's logits."""
    lens = context.lens(scene)
    site = f"blocks.{LAYER}.{local}"
    other = lens.run(_other(scene), capture=site)
    patched = lens.run(scene.ids, edits=[replace(site, other[site])])
    _differ(other.logits, _plain(scene).logits, "the other input")
    _close(patched.logits, _plain(scene, _other(scene)).logits, f"{site} of another run", SINGLE)


def _sums(context: Context, scene: Scene) -> None:
    """What a block adds to the residual stream is what lies between its ends."""
    lens = context.lens(scene)
    family = lens.architecture.family
    assert family is not None
    names = ["resid_pre", "attn.out", "resid_mid", "mlp.out", "resid_post"]
    run = lens.run(scene.ids, capture=[f"blocks.{LAYER}.{n}" for n in names if n not in _absent(scene.family)])
    pre, attn, mlp, post = (run[f"blocks.{LAYER}.{n}"] for n in ("resid_pre", "attn.out", "mlp.out", "resid_post"))
    mid = run[f"blocks.{LAYER}.resid_mid"] if "resid_mid" not in _absent(scene.family) else pre + attn
    for site, total, want in (("resid_mid", pre + attn, mid), ("resid_post", mid + mlp, post)):
        path = family.norms.get(site, "").replace("{L}", str(LAYER))
        normed = scene.model.get_submodule(path)(total).detach() if path else total
        _close(normed, want, f"{'the norm of ' if path else ''}what enters {site}")


def _pattern(context: Context, scene: Scene) -> None:
    """From q and k by definition; every row sums to 1, and what may not be seen gets exactly nothing."""
    lens, causal = context.lens(scene), _causal(scene.family)
    for layer in (0, LAYER):
        block = f"blocks.{layer}.attn"
        run = lens.run(scene.ids, capture=[f"{block}.q", f"{block}.k", f"{block}.pattern"])
        got = run[f"{block}.pattern"]
        want = definitions.pattern(scene.model, layer, run[f"{block}.q"], run[f"{block}.k"], causal=causal)
        _close(got, want, f"{block}.pattern from q and k", SINGLE)
        _close(got.sum(-1), torch.ones(got.shape[:3], dtype=torch.float64), "rows of the pattern", SINGLE)
        assert torch.equal(got == 0, want == 0), f"{block}.pattern: a query sees keys that it may not see"


def _head(context: Context, scene: Scene) -> None:
    width = context.lens(scene).architecture.sizes["d_head"]
    edited = context.lens(scene).run(scene.ids, edits=[zero(f"blocks.{LAYER}.attn.z", heads=[2])])
    with _without_inputs(scene, _address(scene, "attn.z").module, range(2 * width, 3 * width)):
        want = _plain(scene).logits
    _differ(want, _plain(scene).logits, "a head")
    _close(edited.logits, want, "head 2 set to zero", SINGLE)


def _neuron(context: Context, scene: Scene) -> None:
    edited = context.lens(scene).run(scene.ids, edits=[zero(f"blocks.{LAYER}.mlp.post", units=[3, 40, 79])])
    with _without_inputs(scene, _address(scene, "mlp.post").module, [3, 40, 79]):
        want = _plain(scene).logits
    _differ(want, _plain(scene).logits, "three neurons")
    _close(edited.logits, want, "neurons 3, 40 and 79 set to zero", SINGLE)


def _value_head(context: Context, scene: Scene) -> None:
    """Without values, the heads that read them have nothing to give: those of the same group."""
    sizes = context.lens(scene).architecture.sizes
    group, width = sizes["head"] // sizes["kv_head"], sizes["d_head"]
    edited = context.lens(scene).run(scene.ids, edits=[zero(f"blocks.{LAYER}.attn.v", heads=[1])])
    with _without_inputs(scene, _address(scene, "attn.z").module, range(group * width, 2 * group * width)):
        want = _plain(scene).logits
    _close(edited.logits, want, "values of head 1 set to zero", SINGLE)


def _embedding(context: Context, scene: Scene) -> None:
    """Moving the embedding of a token by the difference to another is reading the other."""
    lens = context.lens(scene)
    other = scene.ids.clone()
    other[:, 2] = (scene.ids[:, 2] + 50) % scene.model.config.vocab_size
    embed = lens.run(other, capture="embed")["embed"] - lens.run(scene.ids, capture="embed")["embed"]
    edited = lens.run(scene.ids, edits=[add("embed", embed[:, 2:3].contiguous(), positions=[2])])
    _differ(_plain(scene, other).logits, _plain(scene).logits, "another token")
    _close(edited.logits, _plain(scene, other).logits, "another token by its embedding", SINGLE)


def _rows_alone(context: Context, scene: Scene) -> None:
    run = context.lens(scene).run(scene.inputs, capture=f"blocks.{LAYER}.resid_post")
    assert scene.mask is not None
    for row, length in enumerate(scene.lengths):
        real = scene.mask[row].bool()
        alone = scene.ids[row : row + 1, real]
        with torch.no_grad():
            want = scene.model(input_ids=alone, output_hidden_states=True)
        assert alone.shape[1] == length
        _close(run.logits[row, real], want.logits[0], f"logits of row {row} of {scene.padding}-padded inputs", SINGLE)
        residual = run[f"blocks.{LAYER}.resid_post"][row, real]
        _close(residual, want.hidden_states[LAYER + 1][0], f"residual stream of row {row}", SINGLE)


def _generation(context: Context, scene: Scene) -> None:
    """As the library's own greedy decoding, and each position as one forward of the whole text has it."""
    site = f"blocks.{LAYER}.resid_post"
    made = context.lens(scene).generate(scene.ids, max_new_tokens=5, capture=site)
    with torch.no_grad():
        want = scene.model.generate(
            scene.ids, attention_mask=torch.ones_like(scene.ids), max_new_tokens=5, do_sample=False, eos_token_id=None
        )
        whole = scene.model(input_ids=want[:, :-1], output_hidden_states=True)
    assert torch.equal(made.tokens, want), f"tokens {made.new_tokens.tolist()}, must be {want[:, 8:].tolist()}"
    _close(made[site], whole.hidden_states[LAYER + 1], f"{site} while generating", SINGLE)
