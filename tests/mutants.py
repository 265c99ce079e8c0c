"""Backends that are wrong in ways that a task must notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from crosslens.adapters import Edit, Site
from crosslens.adapters.hooks import HooksInspector
from crosslens.adapters.plan import Location, Plan


class PreviousLayer(HooksInspector):
    """Reads and edits the block before the one that was named."""

    def _locate(self, site: Site) -> Location:
        if site.layer:
            site = self.architecture.sites.canonical[f"blocks.{site.layer - 1}.{site.local}"]
        return super()._locate(site)


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
