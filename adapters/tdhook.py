"""tdhook: a HookSession on the caller's model, for one forward.

tdhook finds the module, puts its hook there, keeps the program of hooks and takes all of them off on every way out. Its
own `Target` selects indices on one axis of one tensor, writes what it is given by PyTorch's broadcasting and takes
negative indices; `_Whole` is a target that hands over everything that passes, and the probe does the rest, checked.

`native:PATH.output` and `native:PATH.input` are the module at tdhook's own path: `native:model.layers[3].output`.
Attention after softmax is read from what the eager attention module returns beside its output.

Attribution is tdhook's `Saliency` and `IntegratedGradients`, prepared on a function of the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from tdhook.attribution.integrated_gradients import IntegratedGradients
from tdhook.attribution.saliency import Saliency
from tdhook.paths import resolve_submodule_path
from tdhook.session import HookSession
from tdhook.targets import Target
from tensordict import TensorDict
from torch import Tensor, nn

from .attention import begin_graph, eager_attention, visit_returned
from .attribution import AttributionInspector, Rows, measure
from .capabilities import Support
from .errors import SiteError
from .plan import Location, Plan, Point, Probe
from .sites import Site

Visitor = Callable[[Any], Any]
"""Called with what passes through a module; returns what goes on in its place, or the same object."""

_AT_ONCE = 32  # rows of one forward of integrated gradients, or as many as the batch has


class TDHookInspector(AttributionInspector):
    """tdhook on the caller's own model; nothing of it stays between two forwards."""

    name: ClassVar[str] = "tdhook"
    library: ClassVar[str | None] = "tdhook"
    unsupported: ClassVar[Mapping[str, Support]] = {
        "edit.pattern": Support(
            "upstream",
            "tdhook hooks modules; attention after softmax is made and used inside one, and comes out of it, where it "
            "can be read, when an edit is too late",
        ),
        "attribute@bert": Support(
            "notimpl", "rows are cut behind the target, which only a causal model does not notice"
        ),
    }
    lacking: ClassVar[Mapping[str, Support]] = {
        "occlusion": Support("never", "tdhook has no such method; captum and inseq do"),
        "layer_gradient_x_activation": Support(
            "upstream",
            "tdhook's gradient methods start at what modules put out, and attn.z and mlp.post are what modules take in",
        ),
        "attention": Support("never", "no method of attribution in tdhook; lens.run captures attn.pattern"),
        "value_zeroing": Support("never", "tdhook has no such method; it is inseq's"),
    }

    def _locate(self, site: Site) -> Location:
        if site.kind != "native":
            return super()._locate(site)
        path, _, side = site.address.rpartition(".")
        try:
            found = resolve_submodule_path(self.model, path) if side in ("input", "output") else None
        except (TypeError, ValueError):
            found = None
        if not isinstance(found, nn.Module) or isinstance(found, nn.ModuleList):  # which is never called
            raise SiteError(
                f"site {site.name!r}: tdhook finds no module that runs at {path!r}; an address here is a path that "
                "ends in .input or .output, such as native:lm_head.output or native:model.layers[3].output"
            )
        return Location((path, side))

    def _forward(self, plan: Plan) -> Any:
        with (
            eager_attention(self.model, plan.needs(lambda site: site.local == "attn.pattern")),
            HookSession(self.model) as session,
        ):
            # a native address may be the place of a site: what only reads there comes after what edits it
            for probe in sorted(plan.probes(), key=lambda probe: not probe.edits):
                for path, side, visitor in _visitors(probe, plan.grad):
                    direction: Any = "fwd" if side == "output" else "fwd_pre_kwargs"
                    session.replace(_Whole(path, side, visitor), 0.0, direction=direction)
            return self.model(*plan.args, **plan.kwargs)

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        model, embeds = _Value(self.model, rows), rows.embeds.detach()
        given = {"input": embeds, "baseline": {} if rows.baseline is None else {"input": rows.baseline}}

        def attribute(by: Any) -> Any:
            with by.prepare(model) as hooked:
                return hooked(TensorDict(given, batch_size=[len(embeds)], device=embeds.device))

        if method != "integrated_gradients":
            product = method == "input_x_gradient"
            found = attribute(Saliency(absolute=not product, multiply_by_inputs=product))
            return found["attr", "input"], None
        units, delta = torch.zeros_like(embeds), torch.zeros_like(embeds[:, 0, 0])
        some = max(1, _AT_ONCE // len(embeds))
        for start in range(0, rows.steps, some):
            found = attribute(_nodes(rows.steps, slice(start, start + some)))
            part = found["attr", "input"]
            # each part's own delta is its sum minus the whole change, which is subtracted once
            units, delta = units + part, delta + (part.flatten(1).sum(1) if start else found["convergence_delta"])
        return units, delta


class _Value(nn.Module):
    """The target as a function of embeddings, for tdhook to differentiate.

    Args:
        model: the caller's.
        rows: whose targets these are; tdhook may give it each row several times in a row.
    """

    def __init__(self, model: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.model = model
        self.rows = rows

    def forward(self, embeds: Tensor) -> Tensor:
        """(rows * n, pos, d_model) -> (rows * n,)"""
        rows, times = self.rows, len(embeds) // len(self.rows.ids)
        token, minus, positions = (
            None if tensor is None else tensor.repeat_interleave(times, dim=0)
            for tensor in (rows.token, rows.minus, rows.positions)
        )
        assert token is not None, "a target has a token"
        given = {} if positions is None else {"position_ids": positions}
        logits = self.model(inputs_embeds=embeds, **given, use_cache=False).logits
        return measure(logits[:, -1], token, minus, rows.of)


def _nodes(steps: int, part: slice) -> IntegratedGradients:
    """tdhook's integrated gradients over some of the nodes, since it runs all that it has in one forward."""
    found = IntegratedGradients(n_steps=steps, multiply_by_inputs=True, compute_convergence_delta=part.start == 0)
    found._alphas, found._step_sizes = found._alphas[part], found._step_sizes[part]
    found._n_steps = len(found._alphas)
    return found


class _Whole(Target):  # type: ignore[misc]
    """All that goes into or comes out of a module, and what visits it, in the place of a selection of indices."""

    def __init__(self, path: str, side: str, visitor: Visitor) -> None:
        super().__init__(module_path=path, kind="activation", feature_axis=0, indices=(0,))
        object.__setattr__(self, "side", side)  # tdhook's targets are frozen
        object.__setattr__(self, "visitor", visitor)

    def replace_output(self, value: Any, replacement: Any) -> Any:
        """What goes on in the place of `value`; None, for PyTorch, where nothing changes."""
        visitor: Visitor = vars(self)["visitor"]
        if vars(self)["side"] == "output":
            new = visitor(value)
            return None if new is value else new
        args, kwargs = value
        if args:
            new = visitor(args[0])
            return None if new is args[0] else ((new, *args[1:]), kwargs)
        name = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        if name is None:
            raise SiteError(f"the module at {self.module_path!r} is called without a tensor among its arguments")
        new = visitor(kwargs[name])
        return None if new is kwargs[name] else (args, {**kwargs, name: new})


def _visitors(probe: Probe, grad: bool) -> list[tuple[str, str, Visitor]]:
    """(tdhook's path, side, visitor) of a probe."""
    if not isinstance(probe.key, Point):
        own: Any = probe.key  # as _locate made it
        return [(own[0], own[1], probe)]
    path = _path(probe.key.path)
    if probe.key.side != "softmax":
        return [(path, probe.key.side, probe)]
    pattern = (path, "output", partial(visit_returned, probe))
    return [(path, "input", begin_graph), pattern] if grad else [pattern]


def _path(dotted: str) -> str:
    """A path of `Module.get_submodule` in tdhook's grammar, which writes unusual names in angle brackets."""
    parts = dotted.split(".") if dotted else []
    return ".".join(part if re.fullmatch(r"\w+", part) else f"<{part}>" for part in parts)
