"""penzai: the model converted to JAX, with penzai layers put in at the sites.

The only backend that does not run the caller's PyTorch model: weights are copied, and converted anew when they change.
Blocks run one by one, each a penzai layer compiled by `jax.jit`; tensors pass between them as PyTorch's. So an edit by
a function of the caller's happens between two runs of its block, gradients are PyTorch's around JAX's, and a stopped
forward runs no block after the stop.

Widths are rounded up, to a multiple of 16 or by at most an eighth, with padding on the right that attention does not
see: prompts of many lengths, or a growing text, compile few functions.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import torch
from penzai import pz
from torch import Tensor, nn

from .capabilities import FAMILY_NAMES, Support
from .errors import SiteError, UnsupportedError
from .inputs import Geometry
from .inspector import Inspector
from .penzai_convert import CONVERTED, convert, precision, to_jax
from .penzai_segments import Step, segments_of
from .plan import Location, Plan, View, Visit
from .sites import BLOCK_AXES, GLOBAL_AXES, Site

_NO_MODULES = Support("never", "JAX runs a converted copy; the PyTorch modules do not run")


class PenzaiInspector(Inspector):
    """penzai's layers and selectors, compiled by JAX, on a converted copy of the model.

    Weights that were changed in place, or put in the place of others, are converted again before the next run. A change
    through `tensor.data` is one that PyTorch itself does not count: after it, open another inspector.
    """

    name: ClassVar[str] = "penzai"
    library: ClassVar[str | None] = "penzai"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "capture.module": _NO_MODULES,
        "edit.module": _NO_MODULES,
        "coexist.hooks": Support("never", "hooks on PyTorch modules cannot act in a converted copy; remove them first"),
        "capture.native": Support("never", "penzai selects places by the structure of the model; it has no names"),
        "dropout": Support("upstream", "its transformers have no dropout; call model.eval() first"),
        **{
            f"family.{name}": Support("upstream", f"penzai has no converter from a PyTorch {name} model")
            for name in FAMILY_NAMES
            if name not in CONVERTED
        },
    }

    def _open(self) -> None:
        family = self.architecture.family
        if family is None:
            raise self._refusal("capture.module")
        self._family = family.name
        self._watch: Callable[..., None] | None = None
        self._caches: weakref.WeakKeyDictionary[Any, tuple[int, dict[int, Any]]] = weakref.WeakKeyDictionary()
        self._convert()

    def _convert(self) -> None:
        converted = convert(self.model, self._family)
        self._metadata = converted.metadata
        canonical = list(self.architecture.sites.canonical.values())
        layers = range(self.architecture.sizes["n_layers"])
        of_blocks = [[s.local for s in canonical if s.layer == layer] for layer in layers]
        self._segments = segments_of(converted, [["embed"], *of_blocks, ["final_norm", "logits"]])
        self._converted_from = self._weights()

    def _weights(self) -> list[tuple[int, int, int]]:
        """What tells changed weights from those that were converted."""
        return [(id(p), p.data_ptr(), p._version) for p in self.model.parameters()]

    def _release(self) -> None:
        self._segments = []

    def _locate(self, site: Site) -> Location:
        if site.kind != "canonical":
            raise SiteError(f"site {site.name!r}: backend {self.name!r} has canonical sites only")
        return Location(site.name)

    def _mask(self, mask: Tensor, queries: int) -> Tensor:
        return mask  # attention is masked by position, and the plan's geometry knows those

    def _forward(self, plan: Plan) -> Any:
        from transformers.modeling_outputs import CausalLMOutput  # imported here: its model has it loaded already

        self._check_model()
        if self._weights() != self._converted_from:
            self._convert()
        frame = self._frame(plan)
        side = frame.side()
        places: dict[int, list[Visit]] = {}
        for visit in sorted(plan.visits, key=lambda v: v.site.order):
            places.setdefault(self._segment_of(visit.site), []).append(visit)
        stream = frame.wide(plan.kwargs["input_ids"].int(), "tokens")
        for number, segment in enumerate(self._segments):
            step = Step(segment, side, frame.neutral, self._dtype, self._device, frame.memory.get(number))
            step.watch = self._watch
            visits = places.get(number, [])
            stream = self._through(step, stream, visits, plan, frame)
            if number in frame.memory:
                frame.memory[number] = step.after
            if any(visit.stop for visit in visits):
                return None
        return CausalLMOutput(logits=frame.narrow(stream, "logits").contiguous())

    def _through(self, step: Step, stream: Tensor, visits: list[Visit], plan: Plan, frame: _Frame) -> Tensor:
        """One segment with its edits and captures: what enters it -> what leaves it."""
        shifts: dict[str, Tensor] = {}
        for visit in visits:
            local, live = visit.site.local, plan.grad and visit.capture
            shape = self._shape(visit.site, plan.geometry)
            if any(edit.edit.kind == "apply" for edit in visit.edits):
                shift = frame.narrow(step.run(stream, shifts, [local])[1], local)
                for edit in visit.edits:
                    for piece in edit.bind(plan.geometry):
                        shift = piece.apply(shift)
                scale = torch.zeros_like(shift)
            elif visit.edits or live:
                scale, shift = _affine(visit, plan.geometry, torch.zeros(shape, dtype=self._dtype, device=self._device))
            else:
                continue
            if live:
                shift = shift if shift.requires_grad else shift.detach().requires_grad_()
                plan.live[visit.site.name] = (shift, View())
            step.scales[local] = frame.wide(scale.detach(), local)
            shifts[local] = frame.wide(shift, local)
        stop = next((visit.site.local for visit in visits if visit.stop), "")
        captured = [] if plan.grad else [visit.site for visit in visits if visit.capture]
        stream, *values = step.run(stream, shifts, [site.local for site in captured], stop)
        for site, value in zip(captured, values, strict=True):
            plan.captured[site.name] = frame.narrow(value, site.local).contiguous()
        plan.reached.update(visit.site.name for visit in visits)
        return stream

    @contextmanager
    def work(self) -> Iterator[Work]:
        """Counts the arithmetic that runs inside, since no PyTorch function can be seen to run."""
        done = Work()
        self._watch = done.add
        try:
            yield done
        finally:
            self._watch = None

    def _segment_of(self, site: Site) -> int:
        if site.layer is not None:
            return site.layer + 1
        return 0 if site.name == "embed" else len(self._segments) - 1

    def _frame(self, plan: Plan) -> _Frame:
        """The shapes of this forward; in a generation with a cache, with the keys and values of the steps before."""
        geometry, cache = plan.geometry, plan.kwargs.get("past_key_values")
        columns = geometry.columns if geometry.columns == 1 else _rounded(geometry.columns)
        if cache is None:
            return _Frame(plan, self.architecture.sizes, self._dtype, columns, columns)
        if cache not in self._caches:
            length = max(columns, _rounded(geometry.columns + geometry.new_positions))
            sizes = {"batch": geometry.batch, **self._metadata.common_head_axes, "seq": length}
            sizes["projection"] = self._metadata.projection_dim
            with precision(self._dtype):
                dtype = to_jax(torch.zeros((), dtype=self._dtype)).dtype
                empty = {
                    n: (pz.nx.zeros(sizes, dtype), pz.nx.zeros(sizes, dtype)) for n in range(1, len(self._segments) - 1)
                }
            self._caches[cache] = (length, empty)
        length, memory = self._caches[cache]
        return _Frame(plan, self.architecture.sizes, self._dtype, columns, length, memory)

    def _check_model(self) -> None:
        """Refuse what the model would do and its converted copy does not."""
        for module in self.model.modules():
            hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
            if any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks):
                self._require("coexist.hooks")
            rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
            if module.training and isinstance(rate, float) and rate:
                self._require("dropout")


class Work:
    """How much was computed.

    Attributes:
        count: floating-point operations of the compiled functions that ran, as XLA counts them.
    """

    def __init__(self) -> None:
        self.count = 0.0

    def add(self, function: Any, *arguments: Any) -> None:
        """Count one run of a compiled function."""
        self.count += function.lower(*arguments).cost_analysis()["flops"]


@dataclass(frozen=True)
class _Frame:
    """Shapes of one forward, rounded up, and what goes with its columns.

    Args:
        sizes: of the axes of sites.
        dtype: of the model.
        columns: width of the tensors in JAX.
        keys: width of their keys.
        memory: segment number -> keys and values of earlier steps; updated as the forward goes on.
    """

    plan: Plan
    sizes: Mapping[str, int]
    dtype: torch.dtype
    columns: int
    keys: int
    memory: dict[int, Any] = field(default_factory=dict)
    _neutral: dict[tuple[int, ...], tuple[jax.Array, jax.Array]] = field(default_factory=dict)

    def neutral(self, site: str) -> tuple[jax.Array, jax.Array]:
        """Scale 1 and shift 0 in the wide shape of a site."""
        own = {"batch": self.plan.geometry.batch, "pos": self.columns, "query": self.columns, "key": self.keys}
        axes = GLOBAL_AXES.get(site) or BLOCK_AXES[site]
        shape = tuple({**self.sizes, **own}[axis] for axis in axes)
        if shape not in self._neutral:
            self._neutral[shape] = (
                to_jax(torch.ones(shape, dtype=self.dtype)),
                to_jax(torch.zeros(shape, dtype=self.dtype)),
            )
        return self._neutral[shape]

    def wide(self, tensor: Tensor, site: str) -> Tensor:
        """The tensor of a site with columns, and keys, of padding at the end."""
        more = self.columns - self.plan.geometry.columns
        if site != "attn.pattern":
            return _padded(tensor, 1, more)
        return _padded(_padded(tensor, 2, more), 3, self.keys - tensor.shape[3])

    def narrow(self, tensor: Tensor, site: str) -> Tensor:
        """A site's tensor without them."""
        geometry = self.plan.geometry
        if site != "attn.pattern":
            return tensor[:, : geometry.columns]
        assert geometry.key_position is not None
        return tensor[:, :, : geometry.columns, : geometry.key_position.shape[1]]

    def side(self) -> dict[str, jax.Array]:
        """penzai's side inputs: for attention the position of each column, -1 at padding; for rotary, the caller's."""
        geometry = self.plan.geometry
        assert geometry.position is not None
        assert geometry.key_position is not None
        own = self.plan.kwargs.get("position_ids", geometry.position.clamp(min=0)).expand(geometry.batch, -1)
        if "attention_mask" not in self.plan.kwargs and bool((own.diff() != 1).any()):
            raise UnsupportedError(
                "position_ids jump, which without an attention_mask packs several sequences in a row; backend 'penzai' "
                "does not pack (notimpl): give each sequence a row of its own"
            )
        found = {
            "token_positions": _padded(geometry.position, 1, self.columns - geometry.columns, -1),
            "rotary_positions": _padded(own, 1, self.columns - geometry.columns),
        }
        if self.memory:
            keys = geometry.key_position
            found["kv_token_positions"] = _padded(keys, 1, self.keys - keys.shape[1], -1)
            found["cache_end_index"] = torch.tensor(keys.shape[1] - geometry.columns)
        return {name: to_jax(tensor.int()) for name, tensor in found.items()}


def _affine(visit: Visit, geometry: Geometry, nothing: Tensor) -> tuple[Tensor, Tensor]:
    """Edits as one `x * scale + shift`: scale and shift, in the shape of the site."""
    scale, shift = nothing + 1, nothing
    for edit in visit.edits:
        for piece in edit.bind(geometry):
            shift = piece.apply(shift)
            if piece.kind != "add":
                factor = piece if piece.kind == "scale" else dataclasses.replace(piece, kind="zero")
                scale = factor.apply(scale)
    return scale, shift


def _padded(tensor: Tensor, axis: int, more: int, value: float = 0) -> Tensor:
    """`more` entries of `value` at the end of an axis."""
    return nn.functional.pad(tensor, [0, 0] * (tensor.ndim - 1 - axis) + [0, more], value=value) if more else tensor


def _rounded(width: int) -> int:
    multiple = max(16, 1 << width.bit_length() >> 4)
    return -(-width // multiple) * multiple
