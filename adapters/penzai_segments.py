"""A model cut at its blocks into penzai layers that are compiled one by one, with penzai layers put in at its sites.

One compiled function serves every block of a model, and every model of the same shape: weights are its arguments.
What is put in at a site is `x * scale + shift`, both arguments too, so another value, position, head or layer compiles
nothing new; other sites, or another shape, do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import torch
from penzai import pz
from penzai.models.transformer import model_parts
from torch import Tensor

from .penzai_convert import precision, to_jax, to_torch

Arrays = Mapping[str, jax.Array]
_MASKS = pz.nn.ApplyCausalAttentionMask | pz.nn.ApplyCausalSlidingWindowAttentionMask
_ATTENTION = pz.nn.Attention | pz.nn.KVCachingAttention


@pz.pytree_dataclass
class AtSite(pz.nn.Layer):  # type: ignore[misc]  # penzai is not typed
    """Goes on with `x * scale + shift`, and keeps that.

    Attributes:
        scale, shift: in the shape of the site, or None to keep only. Where scale is 0, x does not count, be it NaN.
        axes: penzai's names of the axes, in the order of the site; those of heads are one axis of the site.
        kept: what it goes on with, in the shape of the site.
    """

    scale: Any
    shift: Any
    axes: tuple[Any, ...] = dataclasses.field(metadata={"pytree_node": False})
    kept: Any

    def __call__(self, x: Any, **_: Any) -> Any:
        names = [name for axis in self.axes for name in ([axis] if isinstance(axis, str) else axis)]
        raw = x.unwrap(*names)
        sizes = iter(raw.shape)
        shape = [next(sizes) if isinstance(axis, str) else _product(next(sizes) for _ in axis) for axis in self.axes]
        site = raw.reshape(shape)
        if self.scale is not None:
            site = jnp.where(self.scale == 0, self.shift, site * self.scale + self.shift)
        self.kept.value = site
        return x if self.scale is None else pz.nx.wrap(site.reshape(raw.shape)).tag(*names)


def _product(sizes: Any) -> int:
    return functools.reduce(lambda a, b: a * b, sizes, 1)


@dataclass(frozen=True)
class Heads:
    """penzai's names of the head axes: one for plain attention, two for grouped, none in keys of multi-query."""

    common: tuple[str, ...]
    query: tuple[str, ...]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Site -> its axes; a tuple within stands for one axis of the site."""
        stream, every = ("batch", "seq", "embedding"), (*self.common, *self.query)
        per_head = ("batch", "seq", every, "projection")
        shared = ("batch", "seq", self.common, "projection")
        return {
            **dict.fromkeys(("embed", "resid_pre", "resid_mid", "resid_post", "final_norm"), stream),
            "attn.out": stream, "mlp.out": stream,
            "attn.q": per_head, "attn.k": shared, "attn.v": shared, "attn.z": per_head,
            "attn.pattern": ("batch", every, "seq", "kv_seq"),
            "mlp.post": ("batch", "seq", "neurons"),
            "logits": ("batch", "seq", "vocabulary"),
        }  # fmt: skip


def _put_in(layer: Any, site: str, new: Any) -> Any:
    """The layer with another at one of its sites."""
    attention = pz.select(layer).at_instances_of(_ATTENTION)
    after: Mapping[str, Callable[[Any], Any]] = {
        "attn.q": lambda a: a.input_to_query.sublayers[0],
        "attn.k": lambda a: a.input_to_key.sublayers[0],
        "attn.v": lambda a: a.input_to_value.sublayers[0],
        "attn.pattern": lambda a: a.query_key_to_attn.sublayers[-1],
    }
    if site in after:
        return attention.assert_count_is(1).at(after[site]).insert_after(new)
    if site == "attn.z":
        return attention.assert_count_is(1).at(lambda a: a.attn_value_to_output.sublayers[-1]).insert_before(new)
    if site == "attn.out":
        return attention.assert_count_is(1).insert_after(new)
    if site == "resid_mid":
        return pz.select(layer).at_instances_of(pz.nn.Residual).pick_nth_selected(0).insert_after(new)
    if site.startswith("mlp."):
        mlp = pz.select(layer).at_instances_of(model_parts.TransformerFeedForward).assert_count_is(1)
        if site == "mlp.out":
            return mlp.insert_after(new)
        return mlp.at(lambda m: m.sublayers[-1]).insert_before(new)
    if site == "final_norm":
        return pz.select(layer).at(lambda tail: tail.sublayers[0]).insert_after(new)
    return pz.nn.Sequential([new, layer] if site == "resid_pre" else [layer, new])


def _run(
    form: Form, leaves: Sequence[jax.Array], x: jax.Array, side: Mapping[str, jax.Array], memory: Any,
    scales: Arrays, shifts: Arrays,
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:  # fmt: skip
    """What the segment returns, its keys and values so far, and its sites; traced by JAX, then compiled."""
    layer = jax.tree.unflatten(form.tree, leaves)
    state = None
    if memory is not None:
        layer, state = _with_memory(layer, memory)
    kept = {site: pz.StateVariable(None, label=site) for site in form.sites}
    for site, variable in kept.items():
        layer = _put_in(layer, site, AtSite(scales.get(site), shifts.get(site), form.heads.axes[site], variable))
    named = {name: pz.nx.wrap(value).tag("batch", "seq") if value.ndim else value for name, value in side.items()}
    y = layer(pz.nx.wrap(x).tag("batch", "seq", *(["embedding"] if x.ndim == 3 else [])), **named)
    (axis,) = set(y.named_shape) - {"batch", "seq"}
    values = {site: variable.value for site, variable in kept.items()}
    return y.unwrap("batch", "seq", axis), None if state is None else state.value, values


def _with_memory(layer: Any, memory: Any) -> tuple[Any, Any]:
    """The block with penzai's caching attention in the place of its own."""
    state = pz.StateVariable(memory, label="keys and values")

    def caching(attention: Any) -> Any:
        parts = {part.name: getattr(attention, part.name) for part in dataclasses.fields(pz.nn.Attention)}
        return pz.nn.KVCachingAttention(
            **parts, sequence_axis="seq", kv_cache_end_index_key="cache_end_index", kv_cache=state
        )

    layer = (
        pz.select(layer)
        .at_instances_of(_MASKS)
        .apply(lambda mask: dataclasses.replace(mask, kv_positions_input_name="kv_token_positions"))
    )
    return pz.select(layer).at_instances_of(pz.nn.Attention).assert_count_is(1).apply(caching), state


@dataclass(frozen=True, eq=False)
class Form:
    """All of a segment that its compiled functions depend on, but for shapes; made by `form_of`.

    Args:
        tree: structure of the penzai layer.
        sites: names without their block, in order of execution.
        heads: names of head axes.
        compiled: the functions.
    """

    tree: Any
    sites: tuple[str, ...]
    heads: Heads
    compiled: dict[Any, Any] = field(default_factory=dict)

    def forward(self, last: str) -> Any:
        """The compiled forward; without what comes after the site `last`, if one is named.

        Sites that nobody asked for are read too: it costs next to nothing, and one function serves all captures.
        """

        def run(*arguments: Any) -> Any:
            y, memory, values = _run(self, *arguments)
            if not last:
                return y, memory, values
            return None, None, {site: values[site] for site in self.sites[: self.sites.index(last) + 1]}

        if last not in self.compiled:
            self.compiled[last] = jax.jit(run)
        return self.compiled[last]

    def backward(self, wanted: tuple[str, ...]) -> Any:
        """The compiled transpose: gradients of what it returns and of `wanted` sites -> of its input and its shifts."""

        def pull(leaves: Any, x: Any, side: Any, scales: Any, shifts: Any, gradients: Any) -> Any:
            def outputs(x: Any, shifts: Any) -> Any:
                y, _, values = _run(self, leaves, x, side, None, scales, shifts)
                return (y, *(values[site] for site in wanted))

            if jnp.issubdtype(x.dtype, jnp.integer):  # tokens have no gradient
                return (None, *jax.vjp(lambda s: outputs(x, s), shifts)[1](gradients))
            return jax.vjp(outputs, x, shifts)[1](gradients)

        if wanted not in self.compiled:
            self.compiled[wanted] = jax.jit(pull)
        return self.compiled[wanted]


@functools.lru_cache(maxsize=64)
def form_of(tree: Any, sites: tuple[str, ...], heads: Heads) -> Form:
    """The one form of equal segments, so that they are compiled once in a process, whoever opened their models."""
    return Form(tree, sites, heads)


@dataclass(frozen=True, eq=False)
class Segment:
    """One piece of the model: the embedding, a block, or what comes after the blocks.

    Args:
        form: what it is compiled by.
        leaves: its weights and constants.
    """

    form: Form
    leaves: list[jax.Array]


def segments_of(converted: Any, sites: Sequence[Sequence[str]]) -> list[Segment]:
    """Cut a converted `TransformerLM` in pieces; `sites` are those of the embedding, each block, and the rest."""
    layers = converted.body.sublayers
    blocks = [layer for layer in layers if isinstance(layer, model_parts.TransformerBlock)]
    first, count = layers.index(blocks[0]) if blocks else 1, len(blocks)
    pieces = [pz.nn.Sequential(layers[:first]), *blocks, pz.nn.Sequential(layers[first + count :])]
    heads = Heads(tuple(converted.metadata.common_head_axes), tuple(converted.metadata.query_only_head_axes))
    out = []
    for piece, names in zip(pieces, sites, strict=True):
        leaves, tree = jax.tree.flatten(piece)
        out.append(Segment(form_of(tree, tuple(names), heads), leaves))
    return out


@dataclass(eq=False)
class Step:
    """One segment in one forward.

    Args:
        segment: which.
        side: positions, the same for all segments.
        neutral: site -> the scale and shift that change nothing. One function does any edit of a segment, so in a
            segment with an edit, sites without one get these; but for patterns, which are large.
        dtype, device: of the model.
        memory: keys and values so far, in a generation with a cache.
        scales: site -> what it is multiplied by, in the shape of the site.
        after: keys and values after the last run.
        watch: told of each compiled function and its arguments, if given.
    """

    segment: Segment
    side: Mapping[str, jax.Array]
    neutral: Callable[[str], tuple[jax.Array, jax.Array]]
    dtype: torch.dtype
    device: torch.device
    memory: Any = None
    scales: dict[str, Tensor] = field(default_factory=dict)
    after: Any = None
    watch: Callable[..., None] | None = None

    def run(self, x: Tensor, shifts: Mapping[str, Tensor], wanted: Sequence[str], last: str = "") -> tuple[Any, ...]:
        """What the segment returns, then the values of `wanted` sites; differentiable in `x` and `shifts`.

        Args:
            x: what enters it; (batch, pos) tokens or (batch, pos, d_model).
            shifts: site -> what is added to it, in its shape; the sites are those of `scales`.
            wanted: sites to read.
            last: stop after this site, and return None first.
        """
        return tuple(_Through.apply(self, tuple(shifts), tuple(wanted), last, x, *shifts.values()))  # type: ignore[no-untyped-call]


class _Through(torch.autograd.Function):
    """A compiled segment as one operation of PyTorch's autograd."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, edited: tuple[str, ...], wanted: tuple[str, ...], last: str, x: Tensor, *shifts: Tensor
    ) -> tuple[Tensor | None, ...]:
        form = step.segment.form
        with precision(step.dtype):
            scale = {site: to_jax(step.scales[site]) for site in edited}
            shift = {site: to_jax(tensor) for site, tensor in zip(edited, shifts, strict=True)}
            for site in form.sites if edited else ():
                if site not in shift and site != "attn.pattern":
                    scale[site], shift[site] = step.neutral(site)
            entering = to_jax(x)
            run, given = form.forward(last), (step.segment.leaves, entering, step.side, step.memory, scale, shift)
            y, memory, values = run(*given)
            if step.watch is not None:
                step.watch(run, *given)
            out = [None if y is None else to_torch(y, step.device)]
            out += [to_torch(values[site], step.device) for site in wanted]
        step.after = memory
        ctx.step, ctx.wanted, ctx.edited, ctx.given = step, wanted, edited, (entering, scale, shift)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        step: Step = ctx.step
        entering, scale, shift = ctx.given
        with precision(step.dtype):
            pull = step.segment.form.backward(ctx.wanted)
            given = tuple(to_jax(gradient) for gradient in gradients)
            into, of_shifts = pull(step.segment.leaves, entering, step.side, scale, shift, given)
            of_x = None if into is None else to_torch(into, step.device)
            return None, None, None, None, of_x, *(to_torch(of_shifts[site], step.device) for site in ctx.edited)
