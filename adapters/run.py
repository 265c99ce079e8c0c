"""What a forward or a generation gives back."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import SiteError
from .inputs import Geometry


class Run(Mapping[str, Any]):
    """Result of one forward: `run[site]` is the captured tensor, the caller's own.

    Attributes:
        output: what the model returned; None if it was stopped early.
        geometry: which column of each row holds which position.
    """

    def __init__(self, captured: Mapping[str, Any], output: Any, geometry: Geometry, until: str | None = None) -> None:
        self._captured = dict(captured)
        self._until = until
        self.output = output
        self.geometry = geometry

    @property
    def logits(self) -> Tensor:
        """(batch, pos, d_vocab).

        Raises:
            SiteError: the forward was stopped early, or the model has no logits.
        """
        if self._until is not None:
            raise SiteError(f"the forward was stopped at {self._until!r}, before the logits; leave until= out")
        logits = getattr(self.output, "logits", None)
        if not isinstance(logits, Tensor):
            raise SiteError(f"the model returned {type(self.output).__name__}, which has no logits; see run.output")
        return logits

    def __getitem__(self, site: str) -> Any:
        try:
            return self._captured[str(site)]
        except KeyError:
            near = difflib.get_close_matches(str(site), self._captured, n=3, cutoff=0.3) or list(self._captured)[:3]
            raise SiteError(f"site {str(site)!r} was not captured in this run; nearest captured: {near}") from None

    def __contains__(self, site: object) -> bool:
        return str(site) in self._captured

    def __iter__(self) -> Iterator[str]:
        return iter(self._captured)

    def __len__(self) -> int:
        return len(self._captured)

    def at(self, site: str, positions: list[int]) -> Tensor:
        """(batch, len(positions), ...): a site at logical positions, whatever the padding.

        Position p is the p-th real token of each row, -1 the last of its prompt; at attn.pattern, of queries.

        Raises:
            SiteError: the site was not captured, or a row has no such position.
        """
        tensor: Tensor = self[site]
        axis = 2 if site.endswith("attn.pattern") else 1
        lengths = torch.tensor(self.geometry.lengths)[:, None]
        wanted = torch.tensor(positions)[None].repeat(len(lengths), 1)
        wanted = torch.where(wanted < 0, wanted + lengths, wanted)
        assert self.geometry.position is not None, "canonical sites exist only where positions are known"
        hit = self.geometry.position[:, None] == wanted[:, :, None]
        if not bool(hit.any(-1).all()):
            raise SiteError(
                f"site {site!r}: positions {positions} are not all there; rows have {lengths.tolist()} tokens"
            )
        columns = hit.int().argmax(-1).to(tensor.device)
        rows = torch.arange(len(columns), device=tensor.device)[:, None]
        return tensor[rows, columns] if axis == 1 else tensor.transpose(1, 2)[rows, columns].transpose(1, 2)


class Generation(Run):
    """Result of a generation; captured sites cover the prompt and every generated token but the last.

    Attributes:
        tokens: (batch, prompt + new) ids; prompts of unequal length are padded on the left.
        new_tokens: (batch, new).
        logits: (batch, new, d_vocab), those that each new token was chosen from.
    """

    def __init__(self, captured: Mapping[str, Any], tokens: Tensor, logits: Tensor, geometry: Geometry) -> None:
        super().__init__(captured, None, geometry)
        self.tokens = tokens
        self._logits = logits
        self.new_tokens = tokens[:, tokens.shape[1] - logits.shape[1] :]

    @property
    def logits(self) -> Tensor:
        """(batch, new, d_vocab): the logits that each new token was chosen from."""
        return self._logits
