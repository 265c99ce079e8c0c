"""Deliberately broken backends, each breaking one guarantee in a way that real libraries have been seen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from crosslens.adapters import Edit, SiteError
from crosslens.adapters.hooks import HooksInspector
from crosslens.adapters.inputs import Inputs
from crosslens.adapters.plan import Location, Plan, Point, Probe, StopForward, View
from crosslens.adapters.sites import Site


class OtherLayer(HooksInspector):
    """Reads and edits the block before the one that was named."""

    def _locate(self, site: Site) -> Location:
        location = super()._locate(site)
        if site.layer:
            assert isinstance(location.key, Point)
            path = location.key.path.replace(f".{site.layer}", f".{site.layer - 1}")
            location = dataclasses.replace(location, key=Point(path, location.key.side))
        return location


class SwappedHeads(HooksInspector):
    """Takes heads from the wrong end."""

    def _locate(self, site: Site) -> Location:
        location = super()._locate(site)
        return dataclasses.replace(location, view=FlippedView(**vars(location.view)))


class FlippedView(View):
    def read(self, raw: torch.Tensor, batch: int | None = None) -> torch.Tensor:
        out = super().read(raw, batch)
        return out.flip(-2) if self.layout else out


class IgnoresEdits(HooksInspector):
    """Accepts edits and does nothing."""

    def _forward(self, plan: Plan) -> Any:
        for visit in plan.visits:
            visit.edits = []
        return super()._forward(plan)


class ShiftedPositions(HooksInspector):
    """Takes each position for the one before it, when it reads and when it edits."""

    def _plan(self, ready: Inputs, geometry: Any, capture: Any, edits: Iterable[Edit], *rest: Any, **more: Any) -> Plan:
        made = []
        for edit in edits:
            if isinstance(edit.positions, list | tuple):
                edit = dataclasses.replace(edit, positions=[max(p - 1, 0) if p >= 0 else p - 1 for p in edit.positions])
            made.append(edit)
        return super()._plan(ready, geometry, capture, made, *rest, **more)

    def _in_order(self, plan: Plan, capture: Any) -> dict[str, Any]:
        found = super()._in_order(plan, capture)
        return {name: tensor.roll(1, dims=-2 if name.endswith("pattern") else 1) for name, tensor in found.items()}


class NextPosition(HooksInspector):
    """Edits the position after the one that was named, if there is one."""

    def _plan(self, ready: Any, geometry: Any, capture: Any, edits: Iterable[Edit], *rest: Any, **more: Any) -> Plan:
        last = min(geometry.lengths) - 1
        moved = [
            dataclasses.replace(edit, positions=[min(p + 1, last) for p in edit.positions])
            if isinstance(edit.positions, Sequence) and len(edit.positions) == 1 and edit.positions[0] >= 0
            else edit
            for edit in edits
        ]
        return super()._plan(ready, geometry, capture, moved, *rest, **more)


class NextUnit(HooksInspector):
    """Edits the units after those that were named."""

    def _plan(self, ready: Any, geometry: Any, capture: Any, edits: Iterable[Edit], *rest: Any, **more: Any) -> Plan:
        width = self.architecture.sizes["d_mlp"]
        moved = [
            dataclasses.replace(edit, units=[(u + 1) % width for u in edit.units])
            if isinstance(edit.units, Sequence)
            else edit
            for edit in edits
        ]
        return super()._plan(ready, geometry, capture, moved, *rest, **more)


class MlpBranchOnly(HooksInspector):
    """An edit at resid_mid reaches the MLP and not the residual."""

    def _locate(self, site: Site) -> Location:
        return dataclasses.replace(super()._locate(site), shared=False)


class GradientOfOneRow(HooksInspector):
    """Gives the gradient of the first row's metric to all rows."""

    def gradients(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {site: grad[:1].expand_as(grad).clone() for site, grad in super().gradients(*args, **kwargs).items()}


class RunsToTheEnd(HooksInspector):
    """Gives what `until` asks for, and runs the whole model all the same."""

    def _forward(self, plan: Plan) -> Any:
        stop = any(visit.stop for visit in plan.visits)
        for visit in plan.visits:
            visit.stop = False
        output = super()._forward(plan)
        if stop:
            raise StopForward
        return output


class Aliases(HooksInspector):
    """Hands out the model's own tensors."""

    def _attach(self, probe: Probe, softmax: Any) -> Any:
        class Alias(Probe):
            def __call__(self, raw: Any) -> Any:
                out = super().__call__(raw)
                for visit in self.visits:
                    if visit.capture and not self.plan.grad:
                        tensor = out[0] if isinstance(out, tuple) else out
                        self.plan.captured[visit.site.name] = visit.location.view.read(tensor).detach()
                return out

        return super()._attach(Alias(probe.key, probe.visits, probe.plan), softmax)


class FirstNameOnly(HooksInspector):
    """Silently gives zeros for sites that are named out of the order of execution."""

    def _in_order(self, plan: Plan, capture: Any) -> dict[str, Any]:
        found, last = {}, -1
        for site in self._resolve(capture):
            tensor = plan.captured[site.name]
            found[site.name] = tensor if site.order > last else torch.zeros_like(tensor)
            last = max(last, site.order)
        return found


class CapturesBeforeEdits(HooksInspector):
    """A capture at an edited site shows the value from before the edit."""

    def _attach(self, probe: Probe, softmax: Any) -> Any:
        class Early(Probe):
            def __call__(self, raw: Any) -> Any:
                for visit in self.visits:
                    if visit.capture and not self.plan.grad:
                        self._at_tensor(visit, raw, self._capture)
                        visit.capture = False
                return super().__call__(raw)

        return super()._attach(Early(probe.key, probe.visits, probe.plan), softmax)


class NoPositionIds(HooksInspector):
    """Lets the model number the columns, padding and all."""

    def _forward(self, plan: Plan) -> Any:
        plan.kwargs.pop("position_ids", None)
        return super()._forward(plan)


class NoMask(HooksInspector):
    """Attends to padding. (Dropping the mask alone would do no harm: transformers takes position ids that start again
    at 0 for packed sequences, and keeps them apart.)"""

    def _forward(self, plan: Plan) -> Any:
        plan.kwargs.pop("attention_mask", None)
        plan.kwargs.pop("position_ids", None)
        return super()._forward(plan)


class ColumnsForPositions(HooksInspector):
    """Takes a position for a column of the padded batch."""

    def _forward(self, plan: Plan) -> Any:
        plan.geometry = dataclasses.replace(plan.geometry, plain=not plan.geometry.generating)
        return super()._forward(plan)


class PositionsOfTheStep(HooksInspector):
    """While generating with a cache, position 0 is the only one there ever is."""

    def _forward(self, plan: Plan) -> Any:
        geometry = plan.geometry
        if geometry.generating and geometry.columns == 1 and geometry.position is not None:
            plan.geometry = dataclasses.replace(geometry, position=torch.zeros_like(geometry.position))
        return super()._forward(plan)


class FirstStepOnly(HooksInspector):
    """Edits only the first forward of a generation."""

    def _forward(self, plan: Plan) -> Any:
        if plan.geometry.generating and max(plan.geometry.step):
            kept = [(visit, visit.edits) for visit in plan.visits]
            for visit in plan.visits:
                visit.edits = []
            try:
                return super()._forward(plan)
            finally:
                for visit, edits in kept:
                    visit.edits = edits
        return super()._forward(plan)


class DropsUnknownSites(HooksInspector):
    """Silently leaves out what it does not know."""

    def _resolve(self, names: Any) -> list[Site]:
        found = []
        for name in [names] if isinstance(names, str) else names:
            try:
                found += super()._resolve(name)
            except SiteError:
                continue
        return found


class Broadcasts(HooksInspector):
    """Expands a value to the shape of its slice."""

    def _plan(self, ready: Inputs, geometry: Any, capture: Any, edits: Iterable[Edit], *rest: Any, **more: Any) -> Plan:
        made = []
        for edit in edits:
            if isinstance(edit, Edit) and isinstance(edit.value, torch.Tensor) and edit.positions is None:
                shape = self._shape(self._resolve(edit.site)[0], geometry)
                if edit.value.ndim < len(shape):
                    edit = dataclasses.replace(edit, value=edit.value.expand(shape))
            made.append(edit)
        return super()._plan(ready, geometry, capture, made, *rest, **more)


class LeavesHooks(HooksInspector):
    """Forgets a hook on the model."""

    def _open(self) -> None:
        self.model.register_forward_hook(lambda *_: None)


class LeavesHooksOnError(HooksInspector):
    """Removes its hooks only when all goes well."""

    def _forward(self, plan: Plan) -> Any:
        handle = self.model.get_submodule("lm_head").register_forward_hook(lambda *_: None)
        output = super()._forward(plan)
        handle.remove()
        return output


class LeavesEval(HooksInspector):
    """Puts the model into eval mode."""

    def _open(self) -> None:
        self.model.eval()


class LeavesEager(HooksInspector):
    """Switches the attention implementation for good."""

    def _open(self) -> None:
        config: Any = self.model.config
        config._attn_implementation = "eager"


class Freezes(HooksInspector):
    """Freezes the parameters."""

    def _open(self) -> None:
        self.model.requires_grad_(False)


class DrawsRandomNumbers(HooksInspector):
    """Draws from the global random state, outside the protection of the base class."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return super().run(*args, **kwargs)


class LeavesPaddingSide(HooksInspector):
    """Pads on the left from now on."""

    def _open(self) -> None:
        if self.tokenizer is not None:
            self.tokenizer.padding_side = "left"


class FillsGrad(HooksInspector):
    """Leaves gradients on the parameters."""

    def gradients(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        return super().gradients(*args, **kwargs)


class StripsForeignHooks(HooksInspector):
    """Clears every hook of the model when it closes."""

    def _release(self) -> None:
        for module in self.model.modules():
            module._forward_hooks.clear()


class OnlyOneAtATime(HooksInspector):
    """Keeps its state on the model, where the next inspector overwrites it, and the first to close removes it."""

    def _open(self) -> None:
        self.model.__dict__["_owner"] = self

    def _forward(self, plan: Plan) -> Any:
        if self.model.__dict__.get("_owner") is not self:
            for visit in plan.visits:
                visit.edits = []
        return super()._forward(plan)

    def _release(self) -> None:
        self.model.__dict__.pop("_owner", None)


BROKEN: dict[str, list[type[HooksInspector]]] = {
    "right": [OtherLayer, SwappedHeads, IgnoresEdits, ShiftedPositions, MlpBranchOnly, GradientOfOneRow, RunsToTheEnd],
    "owned": [Aliases],
    "order-free": [FirstNameOnly, CapturesBeforeEdits],
    "batch-invariant": [NoPositionIds, NoMask, ColumnsForPositions],
    "positions": [PositionsOfTheStep, FirstStepOnly],
    "refuses": [DropsUnknownSites, Broadcasts],
    "no-trace": [
        LeavesHooks, LeavesHooksOnError, LeavesEval, LeavesEager, Freezes, DrawsRandomNumbers, LeavesPaddingSide,
        FillsGrad, StripsForeignHooks,
    ],
    "not-alone": [OnlyOneAtATime],
}  # fmt: skip
"""Promise -> backends that break it."""
