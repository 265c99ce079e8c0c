"""From what a caller asks to a validated plan of one forward; everything that can be refused is refused here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .architectures import Architecture
from .capabilities import Support, capture_capability
from .edits import Edit, check
from .errors import EditError, SiteError, UnsupportedError
from .inputs import Geometry, Inputs, prepare
from .plan import Location, Plan, Visit, check_before
from .sites import Site

SiteNames = str | Site | Iterable[str | Site]


class Planner:
    """The part of an `Inspector` that resolves sites, checks edits and inputs, and says what is not supported."""

    name: ClassVar[str]
    unsupported: ClassVar[Mapping[str, Support]] = {}
    """Capabilities that are not `supported`, with state and reason; `NAME@FAMILY` is one that only a family lacks."""
    model: nn.Module
    tokenizer: Any
    architecture: Architecture
    _dtype: torch.dtype

    @property
    def capabilities(self) -> dict[str, Support]:
        """Every capability with its state and, where not `supported`, the reason."""
        raise NotImplementedError

    @property
    def _device(self) -> torch.device:
        raise NotImplementedError

    def _locate(self, site: Site) -> Location:
        raise NotImplementedError

    def _mask(self, mask: Tensor, queries: int) -> Any:
        raise NotImplementedError

    def _plan(
        self, ready: Inputs, geometry: Geometry, capture: SiteNames, edits: Iterable[Edit], until: str | Site | None,
        *, grad: bool = False,
    ) -> Plan:  # fmt: skip
        """Validate everything and say where it happens; the model has not run yet."""
        visits: dict[str, Visit] = {}

        def visit(site: Site) -> Visit:
            if site.name not in visits:
                visits[site.name] = Visit(site, self._locate(site))
            return visits[site.name]

        for site in self._resolve(capture):
            self._require(capture_capability(site.kind, site.local), site)
            if grad and site.local == "attn.pattern":
                self._require("gradients.pattern", site)
            visit(site).capture = True
        for edit in edits:
            for site in self._edited(edit):
                target = visit(site)
                if site.kind == "canonical":
                    shape = self._shape(site, geometry)
                    target.edits.append(check(edit, site, shape, site.axes, geometry, self._dtype, self._device))
                else:
                    target.late.append(edit)
        if until is not None:
            self._require("until")
            stop = self._resolve(until)
            if len(stop) != 1:
                raise SiteError(f"until={str(until)!r} matches {len(stop)} sites; name one")
            visit(stop[0]).stop = True
            check_before(visits.values(), stop[0])
        kwargs = dict(ready.kwargs)
        if ready.mask is not None:
            kwargs["attention_mask"] = self._mask(ready.mask, ready.mask.shape[1])
        return Plan(ready.args, kwargs, geometry, grad, list(visits.values()))

    def _edited(self, edit: Edit) -> list[Site]:
        if not isinstance(edit, Edit):
            raise EditError(f"{edit!r} is no edit; make one with replace, add, scale, zero or apply")
        sites = self._resolve(edit.site)
        for site in sites:
            self._require(f"edit.{edit.kind}", site)
            for selection in ("rows", "positions", "heads", "units"):
                if getattr(edit, selection) is not None:
                    self._require(f"edit.{selection}", site)
            if site.local in ("resid_mid", "attn.pattern"):
                self._require(f"edit.{site.local.removeprefix('attn.')}", site)
            if site.kind != "canonical":
                self._require("edit.module" if site.kind == "module" else "capture.native", site)
        return sites

    def _shape(self, site: Site, geometry: Geometry) -> tuple[int, ...]:
        keys = 0 if geometry.key_position is None else geometry.key_position.shape[1]
        pos = geometry.columns
        known = {"batch": geometry.batch, "pos": pos, "query": pos, "key": keys, **site.sizes}
        return tuple(known[axis] for axis in site.axes)

    def _resolve(self, names: SiteNames) -> list[Site]:
        return self.architecture.sites.resolve(names)

    def _prepare(self, inputs: Any) -> Inputs:
        sizes, config = self.architecture.sizes, getattr(self.model, "config", None)
        family = self.architecture.family
        limit = getattr(config, family.positions) if family is not None and family.positions else None
        types = getattr(config, family.token_types) if family is not None and family.token_types else 0
        ready = prepare(
            self.model, inputs, self.tokenizer,
            language=family is not None, vocab=sizes.get("d_vocab", 0), limit=limit, types=types,
        )  # fmt: skip
        if ready.mask is not None:
            assert ready.geometry.position is not None
            left = bool((ready.geometry.position[:, 0] < 0).any())
            self._require("padding.left" if left else "padding.right")
        return ready

    def _require(self, capability: str, site: Site | None = None) -> None:
        if not self._support(capability):
            raise self._refusal(capability, site)

    def _support(self, capability: str) -> Support:
        family = self.architecture.family
        scoped = None if family is None else self.unsupported.get(f"{capability}@{family.name}")
        return self.capabilities.get(capability, Support()) if scoped is None else scoped

    def _refusal(self, capability: str, site: Site | None = None) -> UnsupportedError:
        support = self._support(capability)
        where = f" at {site.name!r}" if site is not None else ""
        issue = f" See {support.issue}" if support.issue else ""
        return UnsupportedError(
            f"backend {self.name!r} does not support {capability}{where} ({support.state}): {support.reason}{issue}. "
            "`crosslens backends` shows which do"
        )
